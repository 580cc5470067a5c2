//! Who sends a request.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;

/// Longest name of a user or group, in bytes.
const MAX_NAME: usize = 256;

/// What a user may do with the kernels of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Starts and uses kernels, and reads those that were shared with them.
    #[default]
    User,
    /// Reads kernels that were shared with them, and starts none.
    Viewer,
    /// Sees, interrupts, restarts and ends all kernels, without their code and output.
    Operator,
    /// Uses all kernels, and starts kernels for other users.
    Admin,
    /// Uses all kernels, and starts kernels for other users: a notebook server that many users share.
    Server,
}

/// The text is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: write user, viewer, operator, admin or server")]
pub struct InvalidRole(String);

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::User, Self::Viewer, Self::Operator, Self::Admin, Self::Server];

    /// The role's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Server => "server",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| InvalidRole(text.to_owned()))
    }
}

/// The text cannot be the name of a user or group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a user or group: a name has 1 to {MAX_NAME} bytes, no control characters, no slash, \
     no comma, and no space at its ends"
)]
pub struct InvalidName(String);

/// Checks the name of a user or group.
pub(crate) fn checked_name(name: &str) -> Result<&str, InvalidName> {
    let is_valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.trim() == name
        && !name.contains(|c: char| c.is_control() || matches!(c, '/' | ','));
    let shown = || name.chars().take(64).collect();
    is_valid.then_some(name).ok_or_else(|| InvalidName(shown()))
}

/// Who sends a request: a user, or a program that has the shared token.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The user's name; `None` for the shared token, and without authentication.
    pub(crate) name: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) role: Role,
    /// Cancelled when the identity is revoked or changed; `None` if that cannot happen.
    pub(crate) revoked: Option<CancellationToken>,
    /// When the identity ends by itself.
    pub(crate) expires: Option<DateTime<Utc>>,
}

impl Identity {
    /// The identity of all requests with the shared token, and of all requests without authentication.
    pub(crate) fn shared() -> Self {
        Self {
            name: None,
            groups: Vec::new(),
            role: Role::Server,
            revoked: None,
            expires: None,
        }
    }

    /// As [`shared`](Self::shared), but it can be revoked.
    pub(crate) fn revocable() -> Self {
        Self {
            revoked: Some(CancellationToken::new()),
            ..Self::shared()
        }
    }

    /// Ends the identity, if it can be revoked.
    pub(crate) fn revoke(&self) {
        if let Some(revoked) = &self.revoked {
            revoked.cancel();
        }
    }

    /// An identity that does not end.
    pub(crate) fn new(name: impl Into<String>, groups: Vec<String>, role: Role) -> Self {
        Self {
            name: Some(name.into()),
            groups,
            role,
            ..Self::shared()
        }
    }

    /// Whether this is the owner.
    pub(crate) fn is(&self, owner: Option<&str>) -> bool {
        self.name.is_some() && self.name.as_deref() == owner
    }

    /// Whether this identity may act for other users.
    pub(crate) fn acts_for_others(&self) -> bool {
        matches!(self.role, Role::Admin | Role::Server)
    }

    /// The user that the request is for, if it names the user `claimed`.
    ///
    /// # Errors
    /// 403 if this identity may not act for that user.
    pub(crate) fn acting_for(&self, claimed: Option<String>) -> Result<Option<String>, ApiError> {
        match claimed {
            Some(claimed) if claimed.is_empty() && !self.acts_for_others() => Ok(self.name.clone()),
            Some(claimed) if !self.acts_for_others() && !self.is(Some(&claimed)) => {
                let own = self.name.as_deref().unwrap_or_default();
                let shown: String = claimed.chars().take(64).collect();
                Err(ApiError::forbidden(format!(
                    "the token is that of {own}, who may not act for {shown}: leave the user's name out, or use the \
                     token of an admin"
                )))
            }
            Some(claimed) => Ok(Some(claimed)),
            None => Ok(self.name.clone()),
        }
    }

    /// Whether the identity can end while a response is being sent.
    pub(crate) fn can_end(&self) -> bool {
        self.revoked.is_some() || self.expires.is_some()
    }

    /// Whether the identity has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let is_revoked = self.revoked.as_ref().is_some_and(CancellationToken::is_cancelled);
        is_revoked || self.expires.is_some_and(|expires| expires <= Utc::now())
    }

    /// Waits until the identity ends.
    pub(crate) async fn ended(&self) {
        let revoked = async {
            match &self.revoked {
                Some(revoked) => revoked.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let expired = async {
            match self.expires {
                Some(expires) => sleep((expires - Utc::now()).to_std().unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = revoked => {}
            () = expired => {}
        }
    }
}

/// The identity of a request, which the guard adds.
pub(crate) type Caller = axum::Extension<Arc<Identity>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_roles_act_for_others() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            let ada = Identity::new("ada", Vec::new(), role);
            let own = |claimed: Option<&str>| ada.acting_for(claimed.map(str::to_owned)).ok().flatten();
            assert_eq!(own(None).as_deref(), Some("ada"));
            assert_eq!(own(Some("ada")).as_deref(), Some("ada"));
            let may = matches!(role, Role::Admin | Role::Server);
            assert_eq!(own(Some("bob")).is_some(), may, "{role}");
        }
        assert!("Admin".parse::<Role>().is_err());
        let shared = Identity::shared();
        assert_eq!(
            shared.acting_for(Some("bob".to_owned())).unwrap().as_deref(),
            Some("bob")
        );
        assert_eq!(shared.acting_for(None).unwrap(), None);
        assert!(!shared.is(None));
    }

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(MAX_NAME + 1);
        for wrong in ["", " ", "a ", "a/b", "a,b", "a\nb", "\0", &long] {
            assert!(checked_name(wrong).is_err(), "{wrong:?}");
        }
        for right in ["ada", "Ada Lovelace", "ada@example.org", "ü", "corp\\ada"] {
            assert_eq!(checked_name(right), Ok(right));
        }
    }

    #[tokio::test]
    async fn an_identity_ends_when_it_is_revoked_or_expires() {
        let mut ada = Identity::new("ada", Vec::new(), Role::User);
        assert!(!ada.can_end());
        ada.expires = Some(Utc::now());
        ada.ended().await;
        ada.expires = None;
        let revoked = CancellationToken::new();
        ada.revoked = Some(revoked.clone());
        assert!(ada.can_end());
        revoked.cancel();
        ada.ended().await;
    }
}
