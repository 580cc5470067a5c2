//! Finds executions whose end went unrecorded, after a lost connection or a restart of this process. A kernel answers
//! in order, so once it answers a new request, it has handled everything that was sent before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use jupyter_protocol::content::{KernelInfoRequest, ListSubshellReply, ListSubshellRequest, Reply};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{ExecutionStatus, Lifecycle, NewEntry, Origin, Seq};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{OUR_SESSION, Recording, SendError};
use crate::session::death::Death;
use crate::session::execution_record::ExecutionRecord;
use crate::session::request_index::RequestIndex;
use crate::session::synthetic_reply::{self, LostReply};

/// How long to wait for the status after a kernel's answer. Some kernels send statuses without a parent, which are not
/// recognized.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a kernel has to list its subshells.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

/// Waiters for the statuses of the recorder's own requests. Once such a status arrives, everything published before it
/// is recorded.
#[derive(Default)]
pub(super) struct StatusWaiters(Mutex<HashMap<String, oneshot::Sender<()>>>);

impl StatusWaiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies the waiter of a status that was recorded.
    pub(super) fn notify(&self, message: &WireMessage) {
        let Ok(parent) = message.parent_ref() else {
            return;
        };
        if parent.session == OUR_SESSION
            && let Some(waiting) = self.lock().remove(&*parent.msg_id)
        {
            // The waiter may have been dropped.
            let _ = waiting.send(());
        }
    }
}

/// A wait for the status of one request. Dropping it unregisters the request.
struct StatusWaiter<'a> {
    statuses: &'a StatusWaiters,
    msg_id: String,
    received: oneshot::Receiver<()>,
}

impl<'a> StatusWaiter<'a> {
    fn new(statuses: &'a StatusWaiters, msg_id: &str) -> Self {
        let (sender, received) = oneshot::channel();
        statuses.lock().insert(msg_id.to_owned(), sender);
        Self {
            statuses,
            msg_id: msg_id.to_owned(),
            received,
        }
    }
}

impl Drop for StatusWaiter<'_> {
    fn drop(&mut self) {
        self.statuses.lock().remove(&self.msg_id);
    }
}

/// The request's entry and the last entry of each execution. Any progress changes the result.
fn positions(executions: &[ExecutionRecord]) -> Vec<(Seq, Seq)> {
    let positions = executions.iter().map(|execution| (execution.request, execution.last));
    positions.collect()
}

impl Recording {
    /// Waits until the kernel has handled all messages sent so far, without a time limit, and ends the
    /// executions whose reply was lost. The caller drops the future when the connection is lost.
    pub(super) async fn recover(&self) -> Result<(), SendError> {
        let mut doubtful: BTreeMap<Option<String>, Vec<Arc<str>>> = BTreeMap::new();
        for (subshell, msg_id) in self.requests().sent_and_unfinished() {
            doubtful.entry(subshell).or_default().push(msg_id);
        }
        // Each subshell answers in its own order.
        let recoveries = doubtful
            .into_iter()
            .map(|(subshell, executions)| self.recover_on_subshell(subshell, executions));
        futures::future::try_join_all(recoveries).await.map(drop)
    }

    async fn recover_on_subshell(&self, subshell: Option<String>, executions: Vec<Arc<str>>) -> Result<(), SendError> {
        let mut before = None;
        loop {
            if let Some(subshell) = &subshell
                && let Some(kernel_session) = self.session_without_subshell(subshell).await?
            {
                self.mark_lost(&executions, &kernel_session);
                return Ok(());
            }
            let Some(kernel_session) = self.probe(subshell.as_deref()).await? else {
                return Ok(());
            };
            let now = positions(&self.requests().unfinished_among(&executions));
            if now.is_empty() {
                return Ok(());
            }
            // The kernel may alternate between requests of the old and the new connection, so an execution counts as
            // lost only after two probes without progress.
            if before.as_ref() == Some(&now) {
                self.mark_lost(&executions, &kernel_session);
                return Ok(());
            }
            before = Some(now);
        }
    }

    /// Returns the kernel's session if the kernel no longer has this subshell and so will never answer the requests on
    /// it.
    async fn session_without_subshell(&self, subshell: &str) -> Result<Option<String>, SendError> {
        let request = Message::new(ListSubshellRequest::default(), OUR_SESSION);
        // Not every kernel supports this request.
        let Ok(reply) = timeout(LIST_DEADLINE, self.request(Channel::Control, &request)).await else {
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

    /// Waits until the kernel answers a request and everything that it published before the answer is recorded. Returns
    /// the kernel's session, or `None` if the kernel restarts instead.
    async fn probe(&self, subshell: Option<&str>) -> Result<Option<String>, SendError> {
        let mut request = Message::new(KernelInfoRequest::default(), OUR_SESSION);
        if let Some(subshell) = subshell {
            request = request.on_subshell(subshell);
        }
        let mut awaited = StatusWaiter::new(&self.statuses, &request.header.msg_id);
        let Some(reply) = self.request(Channel::Shell, &request).await? else {
            return Ok(None);
        };
        let _ = timeout(STATUS_DEADLINE, &mut awaited.received).await;
        Ok(Some(reply.header_ref()?.session.into_owned()))
    }

    /// Marks unfinished executions as lost. Plain Jupyter clients that wait for a reply get one.
    pub(super) fn mark_lost(&self, executions: &[Arc<str>], kernel_session: &str) {
        self.touch();
        let mut requests = self.requests();
        let lost = requests.unfinished_among(executions);
        let event = Lifecycle::Lost {
            executions: msg_ids(&lost),
        };
        self.end_without_reply(&mut requests, &lost, &event, LostReply::OutputLost, kernel_session);
    }

    /// Ends the executions requested before entry `requested_before`, because the kernel died or was restarted.
    pub(super) fn end_with_kernel(&self, event: &Lifecycle, requested_before: Seq) {
        let Some(death) = Death::by(event) else { return };
        let kernel_session = self.kernel_session();
        let mut requests = self.requests();
        let died = requests.unfinished_before(requested_before);
        let event = Lifecycle::Died {
            executions: msg_ids(&died),
            reason: death.reason.clone(),
        };
        let lost_reply = LostReply::KernelEnded {
            ename: death.ename,
            reason: &death.reason,
        };
        self.end_without_reply(&mut requests, &died, &event, lost_reply, &kernel_session);
        // After a restart, later comms belong to the new process.
        requests.end_comms(requested_before);
        self.log.update_index(requests.take_updates());
    }

    /// Ends executions in place of the kernel: appends the event and the messages that their clients wait for.
    fn end_without_reply(
        &self,
        requests: &mut RequestIndex,
        executions: &[ExecutionRecord],
        event: &Lifecycle,
        lost_reply: LostReply<'_>,
        kernel_session: &str,
    ) {
        if executions.is_empty() {
            return;
        }
        let now = Utc::now();
        let outcome = match lost_reply {
            LostReply::OutputLost => (ExecutionStatus::Lost, None),
            LostReply::KernelEnded { reason, .. } => (ExecutionStatus::Died, Some(reason)),
        };
        let replies = executions
            .iter()
            .map(|record| synthetic_reply::messages(record, lost_reply, kernel_session));
        let replies: Vec<_> = replies.collect();
        let event = event.to_message(OUR_SESSION);
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
                seq = requests.end_without_reply(record.msg_id(), (seq, now), messages, outcome);
            }
            requests.take_updates()
        });
    }
}

fn msg_ids(executions: &[ExecutionRecord]) -> Vec<String> {
    executions.iter().map(|record| record.msg_id().to_owned()).collect()
}
