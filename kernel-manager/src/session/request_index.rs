//! Tracks requests and executions and mirrors them into the log's index, so that no request runs twice and executions
//! are found without reading the log.

mod answers;
mod load;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::{Channel, Header, WireMessage};
use kernel_log::{ExecutionStatus, IndexUpdate, Seq};

use super::agent_position::AgentPosition;
use super::comm_state::CommState;
use super::comms::is_comm;
use super::content_fields::{cell_id, code_hash, display_id, execution_count, is_ok, kernel_state, outcome};
use super::execution_record::ExecutionRecord;
use super::follow::MAX_FOLLOWERS;
use super::index_keys::{self as keys, MAX_ID};
use super::known_requests::{Known, KnownRequests};
use super::msg_type::msg_type;
use super::questions::Questions;

/// How many ended executions are kept in memory, for late output and for replays to sessions that reconnect.
const MAX_ENDED: usize = 256;
/// The longest `kernel_info_reply` that is kept, in bytes. Real ones have a few thousand.
const MAX_KERNEL_INFO: usize = 256 << 10;
/// The longest header of an execution record, in bytes. The record contains it whole; typical headers have a few
/// hundred.
const MAX_HEADER: usize = 64 << 10;

/// Requests and executions of one kernel. Every change becomes an update of the log's index, stored with the entries
/// that caused it.
pub(super) struct RequestIndex {
    requests: KnownRequests,
    executions: HashMap<Arc<str>, ExecutionRecord>,
    /// Executions that are logged and not sent yet.
    unsent: HashSet<Arc<str>>,
    /// Ended executions, in the order in which they ended.
    ended: VecDeque<Arc<str>>,
    /// Parent header of the previous message and the execution that it names. In a flood, the next message has the
    /// same parent.
    last_parent: (Bytes, Option<Arc<str>>),
    /// Executions whose record changed.
    changed: HashSet<Arc<str>>,
    updates: Vec<IndexUpdate>,
    /// Whether an execution has ended since the last [`take_ended`](Self::take_ended).
    some_ended: bool,
    /// The newest `update_display_data` of each display, since the last [`take_updates`](Self::take_updates).
    displays: HashMap<String, Seq>,
    questions: Questions,
    /// The content of the newest `kernel_info_reply`.
    kernel_info: Option<Bytes>,
    /// How much of the agent's log is recorded; `None` without an agent.
    agent: Option<AgentPosition>,
    agent_changed: bool,
    pub(super) comms: CommState,
}

impl RequestIndex {
    /// Whether a message with this id was sent to the kernel.
    pub(super) fn knows(&self, msg_id: &str) -> Known {
        if msg_id.is_empty() || msg_id.len() > MAX_ID {
            Known::No
        } else if self.requests.known.contains(msg_id) {
            Known::Yes
        } else if self.requests.all {
            Known::No
        } else {
            Known::MaybeInIndex
        }
    }

    /// Indexes a client's message that was appended as entry `seq`.
    pub(super) fn on_request(
        &mut self,
        seq: Seq,
        time: DateTime<Utc>,
        session: &str,
        channel: Channel,
        message: &WireMessage,
    ) {
        let Ok(header) = message.header_ref() else {
            return;
        };
        if channel == Channel::Shell && is_comm(&header.msg_type) {
            self.on_comm(seq, message);
        }
        if header.msg_id.is_empty() || header.msg_id.len() > MAX_ID || message.header().len() > MAX_HEADER {
            return;
        }
        let msg_id: Arc<str> = (*header.msg_id).into();
        self.requests.insert(msg_id.clone());
        self.updates
            .push(IndexUpdate::put(keys::request(&msg_id), keys::number(seq)));
        if channel != Channel::Shell || header.msg_type != "execute_request" {
            self.updates
                .push(IndexUpdate::put(keys::other_request(seq), msg_id.as_bytes().to_vec()));
            return;
        }
        let Ok(header) = Header::parse(message.header()) else {
            return;
        };
        self.updates.push(IndexUpdate::put(keys::running(seq), Bytes::new()));
        self.on_reused_id(&msg_id, time);
        // The cached result may be that no execution has this `msg_id`.
        self.last_parent = (Bytes::new(), None);
        self.changed.insert(msg_id.clone());
        self.unsent.insert(msg_id.clone());
        self.executions.insert(
            msg_id,
            ExecutionRecord {
                header,
                session: session.to_owned(),
                cell_id: cell_id(message.metadata()),
                code_hash: code_hash(message.content()),
                status: ExecutionStatus::Queued,
                reason: None,
                execution_count: None,
                request: seq,
                reply: None,
                idle: None,
                open_input: None,
                followers: Vec::new(),
                told_missing: false,
                last: seq,
                requested: time,
                started: None,
                ended: None,
            },
        );
    }

    /// Ends any execution that has the `msg_id` of a new one, because the kernel's later messages are attributed to the
    /// new one.
    fn on_reused_id(&mut self, msg_id: &str, time: DateTime<Utc>) {
        let Some(before) = self.executions.get_mut(msg_id) else {
            return;
        };
        if before.ended.is_some() {
            self.ended.retain(|ended| **ended != *msg_id);
        } else {
            before.status = ExecutionStatus::Lost;
            before.reason = Some("other code was sent with the same msg_id".to_owned());
            before.ended = Some(time);
            self.updates.push(IndexUpdate::remove(keys::running(before.request)));
            // Texts, numbers and times always serialize.
            if let Ok(json) = serde_json::to_vec(before) {
                self.updates
                    .push(IndexUpdate::put(keys::execution(before.request), json));
            }
        }
    }

    /// Records that a logged message was sent to the kernel.
    pub(super) fn mark_sent(&mut self, msg_id: &str) {
        self.unsent.remove(msg_id);
    }

    /// Forgets a logged message that could not be sent, so that it can be repeated.
    pub(super) fn mark_unsent(&mut self, msg_id: &str) {
        self.unsent.remove(msg_id);
        if !self.requests.known.remove(msg_id) {
            return;
        }
        self.requests.in_order.retain(|id| &**id != msg_id);
        self.updates.push(IndexUpdate::remove(keys::request(msg_id)));
        if let Some(execution) = self.executions.remove(msg_id) {
            self.changed.remove(msg_id);
            self.updates
                .push(IndexUpdate::remove(keys::execution(execution.request)));
            self.updates.push(IndexUpdate::remove(keys::running(execution.request)));
        }
    }

    /// Indexes a message of the kernel that was appended as entry `seq`.
    pub(super) fn on_kernel_message(&mut self, seq: Seq, time: DateTime<Utc>, channel: Channel, message: &WireMessage) {
        let msg_type = msg_type(message);
        if msg_type == "kernel_info_reply" {
            self.on_kernel_info(message.content());
        }
        if channel == Channel::Control {
            return;
        }
        if msg_type == "update_display_data"
            && let Some(id) = display_id(message.content())
        {
            self.displays.insert(id, seq);
        }
        if channel == Channel::Iopub && is_comm(&msg_type) {
            self.on_comm(seq, message);
        }
        if channel == Channel::Stdin && msg_type == "input_request" {
            self.questions.add(seq, message);
        }
        if self.last_parent.0 != message.parent_header() {
            let parent = message.parent_ref().ok().map(|parent| parent.msg_id);
            let execution = parent.and_then(|id| self.executions.get_key_value(&*id).map(|(id, _)| id.clone()));
            // Copied, because the frame would keep the whole message in memory.
            self.last_parent = (Bytes::copy_from_slice(message.parent_header()), execution);
        }
        let Some(msg_id) = &self.last_parent.1 else {
            return;
        };
        let Some(execution) = self.executions.get_mut(msg_id) else {
            return;
        };
        execution.last = seq;
        let mut changed = execution.status.has_ended();
        match (channel, &*msg_type) {
            (Channel::Iopub, "status") => match kernel_state(message.content()) {
                Some("busy") if execution.started.is_none() => {
                    execution.started = Some(time);
                    if execution.status == ExecutionStatus::Queued {
                        execution.status = ExecutionStatus::Running;
                    }
                    changed = true;
                }
                Some("idle") => {
                    execution.idle = Some(seq);
                    changed = true;
                }
                _ => {}
            },
            (Channel::Iopub, "execute_input") => {
                execution.execution_count = execution_count(message.content()).or(execution.execution_count);
                // A synthetic reply takes the count from the record if the kernel's reply is lost.
                changed = true;
            }
            (Channel::Shell, "execute_reply") => {
                let (status, count) = outcome(message.content());
                execution.status = status;
                execution.reason = None;
                execution.execution_count = count.or(execution.execution_count);
                execution.reply = Some(seq);
                execution.open_input = None;
                self.questions.end(msg_id);
                changed = true;
            }
            (Channel::Stdin, "input_request") => {
                execution.open_input = Some(seq);
                changed = true;
            }
            _ => {}
        }
        if execution.reply.is_some() && execution.idle.is_some() && execution.ended.is_none() {
            execution.ended = Some(time);
            let msg_id = msg_id.clone();
            self.end(msg_id);
        } else if changed {
            self.changed.insert(msg_id.clone());
        }
    }

    /// How much of the agent's log is recorded; `None` without an agent.
    pub(super) fn agent(&self) -> Option<AgentPosition> {
        self.agent
    }

    /// Sets the position in the agent's log that is stored with the next update.
    pub(super) fn set_agent(&mut self, position: AgentPosition) {
        self.agent = Some(position);
        self.agent_changed = true;
    }

    fn on_comm(&mut self, seq: Seq, message: &WireMessage) {
        self.comms.on_message(seq, message, &mut self.updates);
    }

    /// Ends all comms that were opened before this entry, because the kernel's process ended.
    pub(super) fn end_comms(&mut self, opened_before: Seq) {
        self.comms.end(opened_before, &mut self.updates);
    }

    fn on_kernel_info(&mut self, content: &Bytes) {
        if self.kernel_info.as_ref() != Some(content) && content.len() <= MAX_KERNEL_INFO && is_ok(content) {
            // Copied, because the content shares memory with the whole message.
            let content = Bytes::copy_from_slice(content);
            self.updates.push(IndexUpdate::put(keys::KERNEL_INFO, content.clone()));
            self.kernel_info = Some(content);
        }
    }

    /// The content of the newest `kernel_info_reply`.
    pub(super) fn kernel_info(&self) -> Option<Bytes> {
        self.kernel_info.clone()
    }

    /// The header of the request that keeps the main shell busy.
    pub(super) fn busy_with(&self) -> Option<Header> {
        let on_main_shell = self
            .executions
            .values()
            .filter(|execution| execution.ended.is_none() && execution.started.is_some())
            .filter(|execution| execution.header.subshell_id.is_none());
        let running = on_main_shell.min_by_key(|execution| execution.request)?;
        Some(running.header.clone())
    }

    /// Indexes the end of an execution. Only late output may follow.
    fn end(&mut self, msg_id: Arc<str>) {
        if let Some(execution) = self.executions.get(&msg_id) {
            self.updates.push(IndexUpdate::remove(keys::running(execution.request)));
        }
        self.changed.insert(msg_id.clone());
        self.ended.push_back(msg_id);
        self.some_ended = true;
    }

    /// Whether an execution has ended since the last call.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.some_ended)
    }

    /// Sent and unfinished executions: their subshell and `msg_id`.
    pub(super) fn sent_and_unfinished(&self) -> Vec<(Option<String>, Arc<str>)> {
        let unfinished = self
            .executions
            .iter()
            .filter(|(_, execution)| execution.ended.is_none());
        unfinished
            .filter(|(msg_id, _)| !self.unsent.contains(*msg_id))
            .map(|(msg_id, execution)| (execution.header.subshell_id.clone(), msg_id.clone()))
            .collect()
    }

    /// Which of these executions are unfinished, oldest request first.
    pub(super) fn unfinished_among(&self, msg_ids: &[Arc<str>]) -> Vec<ExecutionRecord> {
        let executions = msg_ids.iter().filter_map(|msg_id| self.executions.get(msg_id));
        let mut unfinished: Vec<_> = executions
            .filter(|execution| execution.ended.is_none())
            .cloned()
            .collect();
        unfinished.sort_by_key(|execution| execution.request);
        unfinished
    }

    /// Unfinished executions requested before entry `requested_before`, oldest request first.
    pub(super) fn unfinished_before(&self, requested_before: Seq) -> Vec<ExecutionRecord> {
        let executions = self.executions.values();
        let mut unfinished: Vec<_> = executions
            .filter(|execution| execution.ended.is_none() && execution.request < requested_before)
            .cloned()
            .collect();
        unfinished.sort_by_key(|execution| execution.request);
        unfinished
    }

    /// Unfinished executions that the kernel has reported as started, oldest request first.
    pub(super) fn running(&self) -> Vec<ExecutionRecord> {
        let mut running = self.unfinished_before(Seq(u64::MAX));
        running.retain(|execution| execution.started.is_some());
        running
    }

    /// Records that a notice about missing output of the execution was appended as entry `seq`.
    pub(super) fn mark_incomplete(&mut self, msg_id: &str, seq: Seq, amount_unknown: bool) {
        if let Some(execution) = self.executions.get_mut(msg_id) {
            execution.told_missing |= amount_unknown;
            execution.last = seq;
            self.changed.insert(msg_id.into());
        }
    }

    /// Ends an execution whose reply was not recorded. Its synthetic messages are appended from entry `first` on.
    /// Returns the number of the next entry.
    pub(super) fn end_without_reply(
        &mut self,
        msg_id: &str,
        (first, now): (Seq, DateTime<Utc>),
        messages: &[(Channel, WireMessage)],
        (status, reason): (ExecutionStatus, Option<&str>),
    ) -> Seq {
        let mut next = first;
        let mut last = first;
        for (channel, message) in messages {
            last = next;
            next = next.next();
            if let Some(execution) = self.executions.get_mut(msg_id) {
                match (channel, &*msg_type(message)) {
                    (Channel::Shell, _) => execution.reply = Some(last),
                    (_, "status") => execution.idle = Some(last),
                    _ => {}
                }
            }
        }
        if let Some(execution) = self.executions.get_mut(msg_id) {
            if !execution.status.has_ended() {
                execution.status = status;
                execution.reason = reason.map(str::to_owned);
            }
            execution.open_input = None;
            execution.last = execution.last.max(last);
            execution.ended = Some(now);
        }
        self.questions.end(msg_id);
        self.end(msg_id.into());
        next
    }

    /// Makes the session follow the execution, and returns it; `None` if it is not in memory.
    pub(super) fn follow(&mut self, msg_id: &str, session: &str) -> Option<ExecutionRecord> {
        let (id, execution) = self.executions.get_key_value(msg_id)?;
        let (id, is_new) = (id.clone(), !execution.concerns(session));
        let execution = self.executions.get_mut(&id)?;
        if is_new {
            execution.followers.push(session.to_owned());
            if execution.followers.len() > MAX_FOLLOWERS {
                execution.followers.remove(0);
            }
            self.changed.insert(id);
        }
        Some(execution.clone())
    }

    /// Takes the index updates since the last call, and forgets ended executions beyond [`MAX_ENDED`].
    pub(super) fn take_updates(&mut self) -> Vec<IndexUpdate> {
        for msg_id in self.changed.drain() {
            if let Some(execution) = self.executions.get(&msg_id)
                // Texts, numbers and times always serialize.
                && let Ok(json) = serde_json::to_vec(execution)
            {
                self.updates
                    .push(IndexUpdate::put(keys::execution(execution.request), json));
            }
        }
        for (display_id, seq) in self.displays.drain() {
            self.updates
                .push(IndexUpdate::put(keys::display(&display_id), keys::number(seq)));
        }
        if std::mem::take(&mut self.agent_changed)
            // Numbers always serialize.
            && let Ok(json) = serde_json::to_vec(&self.agent)
        {
            self.updates.push(IndexUpdate::put(keys::AGENT, json));
        }
        while self.ended.len() > MAX_ENDED {
            if let Some(oldest) = self.ended.pop_front() {
                self.executions.remove(&oldest);
                if self.last_parent.1.as_ref() == Some(&oldest) {
                    self.last_parent = (Bytes::new(), None);
                }
            }
        }
        std::mem::take(&mut self.updates)
    }

    /// The session that requested this execution.
    pub(super) fn session_of(&self, msg_id: &str) -> Option<&str> {
        self.executions.get(msg_id).map(|execution| &*execution.session)
    }

    /// Whether this session requested or follows the execution.
    pub(super) fn concerns(&self, msg_id: &str, session: &str) -> bool {
        let execution = self.executions.get(msg_id);
        execution.is_some_and(|execution| execution.concerns(session))
    }

    /// Executions that the session requested or follows and that have entries after `seq` or are unfinished, oldest
    /// request first.
    pub(super) fn active_after(&self, session: &str, seq: Seq) -> Vec<ExecutionRecord> {
        let mut active: Vec<_> = self
            .executions
            .values()
            .filter(|execution| execution.concerns(session) && (execution.ended.is_none() || execution.last > seq))
            .cloned()
            .collect();
        active.sort_by_key(|execution| execution.request);
        active
    }
}

#[cfg(test)]
mod tests;
