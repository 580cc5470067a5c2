//! Restores the executions and other state that an earlier process recorded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kernel_log::{Log, Seq, StoreError};

use super::{MAX_ENDED, RequestIndex};
use crate::session::comm_state::CommState;
use crate::session::execution_record::ExecutionRecord;
use crate::session::executions::message_at;
use crate::session::index_keys as keys;
use crate::session::known_requests::{KnownRequests, MAX_REQUESTS};
use crate::session::questions::Questions;

impl RequestIndex {
    /// Restores executions, open questions and other state from the log and its index. Earlier requests stay in the
    /// index, where they are looked up when needed.
    pub(in crate::session) async fn load(log: &Log) -> Result<Self, StoreError> {
        let mut requests = Self {
            requests: KnownRequests {
                known: HashSet::new(),
                in_order: VecDeque::new(),
                all: log.head() == Seq::START,
            },
            executions: HashMap::new(),
            unsent: HashSet::new(),
            ended: VecDeque::new(),
            last_parent: (Bytes::new(), None),
            changed: HashSet::new(),
            updates: Vec::new(),
            some_ended: false,
            displays: HashMap::new(),
            questions: Questions::default(),
            kernel_info: None,
            agent: None,
            agent_changed: false,
            comms: CommState::none(false),
        };
        if requests.requests.all {
            return Ok(requests);
        }
        let (start, end) = keys::COMMS;
        let is_incomplete = log.index_get(keys::COMMS_INCOMPLETE).await?.is_some();
        requests.comms = if log.index_scan(start, end, 1, false).await?.is_empty() {
            CommState::none(is_incomplete)
        } else {
            CommState::in_log(is_incomplete)
        };
        if let Some(json) = log.index_get(keys::AGENT).await? {
            // If the record cannot be parsed, the agent's log is read from its start.
            requests.agent = serde_json::from_slice(&json).ok();
        }
        requests.kernel_info = log.index_get(keys::KERNEL_INFO).await?;
        let (start, end) = keys::RUNNING;
        for (key, _) in log.index_scan(start, end, MAX_REQUESTS, true).await? {
            if let Some(seq) = keys::seq_of(&key)
                && let Some(record) = log.index_get(keys::execution(seq)).await?
            {
                requests.remember(&record, log.head());
            }
        }
        let (start, end) = keys::EXECUTIONS;
        let mut newest = log.index_scan(start, end, MAX_ENDED, true).await?;
        newest.reverse();
        for (_, record) in newest {
            requests.remember(&record, log.head());
        }
        let open = requests
            .executions
            .values()
            .filter_map(|execution| execution.open_input);
        let mut open: Vec<_> = open.collect();
        open.sort();
        for seq in open {
            // Ignore a question that cannot be read. Then several answers to it may reach the kernel.
            if let Ok(Some((_, question))) = message_at(log, seq).await {
                requests.questions.add(seq, &question);
            }
        }
        Ok(requests)
    }

    fn remember(&mut self, json: &[u8], head: Seq) {
        // An unreadable record counts as missing; the log still has the execution.
        let Ok(mut record) = serde_json::from_slice::<ExecutionRecord>(json) else {
            return;
        };
        if record.request > head {
            return;
        }
        let msg_id: Arc<str> = record.msg_id().into();
        if record.status.has_ended() {
            self.ended.push_back(msg_id.clone());
        } else {
            // While an execution runs, its stored record does not keep `last` up to date.
            record.last = head;
        }
        self.executions.insert(msg_id, record);
    }
}
