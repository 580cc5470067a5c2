//! Sessions map notebooks, consoles and files to kernels.
//!
//! They are kept in memory, for clients that use the gateway directly. JupyterLab with `JUPYTER_GATEWAY_URL` keeps its
//! own sessions.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use axum::http::StatusCode;
use jupyter_protocol::KernelId;
use uuid::Uuid;

use crate::error::ApiError;

/// The most sessions of one kernel. The manager bounds the kernels, in total and per user.
const MAX_SESSIONS: usize = 256;

/// A notebook, console or file and its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) kernel: KernelId,
}

/// Changes to a session; `None` leaves a field unchanged.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) path: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) kernel: Option<KernelId>,
}

/// All sessions, oldest first.
pub(crate) struct Sessions {
    all: Mutex<Table>,
    limit: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            limit: MAX_SESSIONS,
        }
    }
}

#[derive(Default)]
struct Table {
    by_age: BTreeMap<u64, Session>,
    next: u64,
}

impl Table {
    fn find(&mut self, id: Uuid) -> Option<&mut Session> {
        self.by_age.values_mut().find(|session| session.id == id)
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Table> {
        kernel_provider::lock(&self.all)
    }

    /// The sessions whose kernel exists according to `has_kernel`.
    pub(crate) fn list(&self, has_kernel: impl Fn(KernelId) -> bool) -> Vec<Session> {
        let mut sessions: Vec<_> = self.lock().by_age.values().cloned().collect();
        sessions.retain(|session| has_kernel(session.kernel));
        sessions
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<Session> {
        self.lock().find(id).cloned()
    }

    /// The session of this path whose kernel is the caller's according to `is_own`.
    pub(crate) fn of_path(&self, path: &str, is_own: impl Fn(KernelId) -> bool) -> Option<Session> {
        self.list(is_own).into_iter().find(|session| session.path == path)
    }

    /// Adds a session and removes those whose kernels have ended. If the path already has a session whose kernel is the
    /// caller's according to `is_own`, returns that session in the error.
    pub(crate) fn add(
        &self,
        session: Session,
        has_kernel: impl Fn(KernelId) -> bool,
        is_own: impl Fn(KernelId) -> bool,
    ) -> Result<Session, Box<NotAdded>> {
        let mut table = self.lock();
        if let Some(other) = table
            .by_age
            .values()
            .find(|other| other.path == session.path && is_own(other.kernel))
        {
            return Err(Box::new(NotAdded::Exists(other.clone())));
        }
        table.by_age.retain(|_, other| has_kernel(other.kernel));
        let of_kernel = table.by_age.values().filter(|other| other.kernel == session.kernel);
        if of_kernel.count() >= self.limit {
            let message = format!(
                "the kernel has the maximum of {} sessions; delete some first",
                self.limit
            );
            return Err(Box::new(NotAdded::Full(ApiError::new(StatusCode::FORBIDDEN, message))));
        }
        let number = table.next;
        table.next += 1;
        table.by_age.insert(number, session.clone());
        Ok(session)
    }

    /// Changes a session; returns it before and after the change, or `None` if it does not exist.
    pub(crate) fn change(&self, id: Uuid, change: Change) -> Option<(Session, Session)> {
        let mut table = self.lock();
        let session = table.find(id)?;
        let before = session.clone();
        let Change {
            path,
            name,
            kind,
            kernel,
        } = change;
        session.path = path.unwrap_or_else(|| before.path.clone());
        session.name = name.unwrap_or_else(|| before.name.clone());
        session.kind = kind.unwrap_or_else(|| before.kind.clone());
        session.kernel = kernel.unwrap_or(before.kernel);
        Some((before, session.clone()))
    }

    pub(crate) fn remove(&self, id: Uuid) -> Option<Session> {
        let mut table = self.lock();
        let number = *table.by_age.iter().find(|(_, session)| session.id == id)?.0;
        table.by_age.remove(&number)
    }

    /// Whether any session uses the kernel.
    pub(crate) fn uses(&self, kernel: KernelId) -> bool {
        self.lock().by_age.values().any(|session| session.kernel == kernel)
    }
}

/// Why a session was not added.
#[derive(Debug)]
pub(crate) enum NotAdded {
    /// A session with the same path exists.
    Exists(Session),
    /// The kernel has too many sessions.
    Full(ApiError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(path: &str) -> Session {
        Session {
            id: Uuid::new_v4(),
            path: path.to_owned(),
            name: String::new(),
            kind: "notebook".to_owned(),
            kernel: KernelId::random(),
        }
    }

    #[test]
    fn a_path_has_one_session_while_its_kernel_exists() {
        let sessions = Sessions::default();
        let first = sessions.add(session("a"), |_| true, |_| true).unwrap();
        match *sessions.add(session("a"), |_| true, |_| true).unwrap_err() {
            NotAdded::Exists(other) => assert_eq!(other, first),
            NotAdded::Full(_) => panic!("the session table is full"),
        }
        let second = sessions
            .add(
                session("a"),
                |kernel| kernel != first.kernel,
                |kernel| kernel != first.kernel,
            )
            .unwrap();
        assert_eq!(sessions.get(first.id), None);
        assert_eq!(sessions.list(|_| true), std::slice::from_ref(&second));
        assert_eq!(sessions.list(|_| false), []);
        // The session of another user.
        let third = sessions.add(session("a"), |_| true, |_| false).unwrap();
        assert_eq!(sessions.remove(third.id), Some(third));
        assert!(sessions.uses(second.kernel) && !sessions.uses(first.kernel));
    }

    #[test]
    fn a_change_keeps_the_other_fields() {
        let sessions = Sessions::default();
        let old = sessions.add(session("a"), |_| true, |_| true).unwrap();
        let change = Change {
            name: Some("n".to_owned()),
            ..Change::default()
        };
        let (before, after) = sessions.change(old.id, change).unwrap();
        assert_eq!(before, old);
        assert_eq!(
            after,
            Session {
                name: "n".to_owned(),
                ..old
            }
        );
        assert_eq!(sessions.remove(after.id), Some(after.clone()));
        assert_eq!(sessions.remove(after.id), None);
    }

    #[test]
    fn sessions_are_bounded_for_each_kernel() {
        let sessions = Sessions {
            limit: 3,
            ..Sessions::default()
        };
        let kernel = KernelId::random();
        let of_kernel = |path: &str| Session {
            kernel,
            ..session(path)
        };
        for number in 0..3 {
            sessions
                .add(of_kernel(&number.to_string()), |_| true, |_| true)
                .unwrap();
        }
        assert!(matches!(
            *sessions.add(of_kernel("x"), |_| true, |_| true).unwrap_err(),
            NotAdded::Full(_)
        ));
        sessions.add(session("y"), |_| true, |_| true).unwrap();
        // Sessions of ended kernels are removed.
        sessions
            .add(session("z"), |other| other != kernel, |other| other != kernel)
            .unwrap();
        assert_eq!(sessions.list(|_| true).len(), 2);
    }
}
