//! What became of executions whose end may not have been heard, as after a lost connection or a restart of this
//! process: a kernel does in order what it is asked, so once it answers a request of ours, what it was sent before is
//! done.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use jupyter_protocol::content::{KernelInfoRequest, ListSubshellReply, ListSubshellRequest, Reply};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{OUR_SESSION, Recording, SendError};
use crate::log::{NewEntry, Origin, Seq};
use crate::session::execution_record::{ExecutionRecord, ExecutionStatus};
use crate::session::journal::Journal;
use crate::session::lifecycle::Lifecycle;
use crate::session::synthetic_reply::{self, Unheard};

/// How long a kernel that has answered has for the status that comes with the answer. Not all name what it is about.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a kernel has to say which subshells it has.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

/// Requests of ours whose first status is waited for: what the kernel published before is recorded by then.
#[derive(Default)]
pub(super) struct Statuses(Mutex<HashMap<String, oneshot::Sender<()>>>);

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status was recorded.
    pub(super) fn heard(&self, message: &WireMessage) {
        let Ok(parent) = message.parent_ref() else {
            return;
        };
        if parent.session == OUR_SESSION
            && let Some(waiting) = self.lock().remove(&*parent.msg_id)
        {
            // Who waited may have been dropped.
            let _ = waiting.send(());
        }
    }
}

/// Forgets the request when this is dropped.
struct Awaited<'a> {
    statuses: &'a Statuses,
    msg_id: String,
    heard: oneshot::Receiver<()>,
}

impl<'a> Awaited<'a> {
    fn new(statuses: &'a Statuses, msg_id: &str) -> Self {
        let (sender, heard) = oneshot::channel();
        statuses.lock().insert(msg_id.to_owned(), sender);
        Self {
            statuses,
            msg_id: msg_id.to_owned(),
            heard,
        }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.statuses.lock().remove(&self.msg_id);
    }
}

/// Which executions there are and how far they are.
fn positions(executions: &[ExecutionRecord]) -> Vec<(Seq, Seq)> {
    let positions = executions.iter().map(|execution| (execution.request, execution.last));
    positions.collect()
}

impl Recording {
    /// Waits until the kernel has done what it was sent before this, however long that takes, and tells which of it
    /// ended unheard. Whoever loses the connection drops this.
    pub(super) async fn settle(&self) -> Result<(), SendError> {
        let mut doubtful: BTreeMap<Option<String>, Vec<Arc<str>>> = BTreeMap::new();
        for (subshell, msg_id) in self.journal().sent_and_unfinished() {
            doubtful.entry(subshell).or_default().push(msg_id);
        }
        // Each subshell has an order of its own.
        let settling = doubtful
            .into_iter()
            .map(|(subshell, executions)| self.settle_in(subshell, executions));
        futures::future::try_join_all(settling).await.map(drop)
    }

    async fn settle_in(&self, subshell: Option<String>, executions: Vec<Arc<str>>) -> Result<(), SendError> {
        let mut before = None;
        loop {
            if let Some(subshell) = &subshell
                && let Some(kernel_session) = self.lacks(subshell).await?
            {
                self.lose(&executions, &kernel_session);
                return Ok(());
            }
            let Some(kernel_session) = self.turn(subshell.as_deref()).await? else {
                return Ok(());
            };
            let now = positions(&self.journal().unfinished_among(&executions));
            if now.is_empty() {
                return Ok(());
            }
            // Requests of the connection before may wait beside those of the new one, and the kernel take from each in
            // turn. So it has two turns in which nothing happens to them.
            if before.as_ref() == Some(&now) {
                self.lose(&executions, &kernel_session);
                return Ok(());
            }
            before = Some(now);
        }
    }

    /// The session that the kernel names in its messages, where it has no such subshell any more: what is asked there is
    /// never answered.
    async fn lacks(&self, subshell: &str) -> Result<Option<String>, SendError> {
        let request = Message::new(ListSubshellRequest::default(), OUR_SESSION);
        // Not each kernel knows the question.
        let Ok(reply) = timeout(LIST_DEADLINE, self.ask(Channel::Control, &request)).await else {
            return Ok(None);
        };
        let Some(reply) = reply? else {
            return Ok(None);
        };
        let list: Option<Reply<ListSubshellReply>> = serde_json::from_slice(reply.content()).ok();
        let has = match list {
            Some(Reply::Ok(list)) => list.subshell_id.iter().any(|there| there == subshell),
            _ => true,
        };
        let session = reply.header_ref()?.session.into_owned();
        Ok((!has).then_some(session))
    }

    /// Waits until the kernel has answered a request and what it published before is recorded. Returns the session that
    /// it names in its messages; `None` where it is started anew instead.
    async fn turn(&self, subshell: Option<&str>) -> Result<Option<String>, SendError> {
        let mut request = Message::new(KernelInfoRequest::default(), OUR_SESSION);
        if let Some(subshell) = subshell {
            request = request.on_subshell(subshell);
        }
        let mut awaited = Awaited::new(&self.statuses, &request.header.msg_id);
        let Some(reply) = self.ask(Channel::Shell, &request).await? else {
            return Ok(None);
        };
        let _ = timeout(STATUS_DEADLINE, &mut awaited.heard).await;
        Ok(Some(reply.header_ref()?.session.into_owned()))
    }

    /// Those of the executions that have not ended did so unheard. Who waits for their reply, and knows only the Jupyter
    /// protocol, gets one.
    pub(super) fn lose(&self, executions: &[Arc<str>], kernel_session: &str) {
        self.touch();
        let mut journal = self.journal();
        let lost = journal.unfinished_among(executions);
        let event = Lifecycle::Lost {
            executions: msg_ids(&lost),
        };
        self.end_unheard(&mut journal, &lost, &event, Unheard::OutputLost, kernel_session);
    }

    /// The kernel has ended or was restarted, as `event` says: what it was asked before this entry has ended with it.
    pub(super) fn end_with_kernel(&self, event: &Lifecycle, asked_before: Seq) {
        let Some(death) = event.death() else { return };
        let kernel_session = self.kernel_session();
        let mut journal = self.journal();
        let died = journal.unfinished_before(asked_before);
        let event = Lifecycle::Died {
            executions: msg_ids(&died),
            reason: death.reason.clone(),
        };
        let unheard = Unheard::KernelEnded {
            ename: death.ename,
            reason: &death.reason,
        };
        self.end_unheard(&mut journal, &died, &event, unheard, &kernel_session);
    }

    /// Ends executions in the kernel's place: appends the event, and for each of them what its client is sent.
    fn end_unheard(
        &self,
        journal: &mut Journal,
        executions: &[ExecutionRecord],
        event: &Lifecycle,
        unheard: Unheard<'_>,
        kernel_session: &str,
    ) {
        if executions.is_empty() {
            return;
        }
        let now = Utc::now();
        let outcome = match unheard {
            Unheard::OutputLost => (ExecutionStatus::Lost, None),
            Unheard::KernelEnded { reason, .. } => (ExecutionStatus::Died, Some(reason)),
        };
        let replies = executions
            .iter()
            .map(|record| synthetic_reply::messages(record, unheard, kernel_session));
        let replies: Vec<_> = replies.collect();
        let event = event.message(OUR_SESSION);
        let entry = |channel, session, message| NewEntry {
            origin: Origin::Lifecycle,
            channel,
            session,
            message,
        };
        let mut entries = vec![entry(Channel::Iopub, "", &event)];
        for (record, messages) in executions.iter().zip(&replies) {
            for (channel, message) in messages {
                let session = if *channel == Channel::Shell {
                    &*record.session
                } else {
                    ""
                };
                entries.push(entry(*channel, session, message));
            }
        }
        self.log.append_indexed(now, entries, |event| {
            let mut seq = event.next();
            for (record, messages) in executions.iter().zip(&replies) {
                seq = journal.ended_unheard(record.msg_id(), (seq, now), messages, outcome);
            }
            journal.take_updates()
        });
    }
}

fn msg_ids(executions: &[ExecutionRecord]) -> Vec<String> {
    executions.iter().map(|record| record.msg_id().to_owned()).collect()
}
