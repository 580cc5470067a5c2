//! A gateway in memory whose connections fail according to scripts.

mod connection;
mod log;
mod script;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use gateway_client::resume::Start;
use gateway_client::resume::client::{ResumeOptions, Transport};
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::Epoch;
use serde_json::json;
use tokio::io::duplex;
use tokio::sync::watch;

use self::connection::serve;
pub(crate) use self::log::kernel_message;
use self::log::{Log, Slot};
pub(crate) use self::script::{Fault, Refuse, Script, faulty};

pub(crate) const TOKEN: &str = "t0ps3cret";

/// A received handshake.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    pub(crate) path_and_query: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Gateway(Arc<GatewayState>);

struct GatewayState {
    log: Mutex<Log>,
    changed: watch::Sender<u64>,
    scripts: Mutex<VecDeque<Script>>,
    handshakes: Mutex<Vec<Handshake>>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        Self(Arc::new(GatewayState {
            log: Mutex::new(Log {
                epoch: Epoch::random(),
                head: 0,
                slots: BTreeMap::new(),
                requests: HashSet::new(),
                ended: false,
                generation: 0,
                history: BTreeMap::new(),
                answers: true,
            }),
            changed: watch::Sender::new(0),
            scripts: Mutex::default(),
            handshakes: Mutex::default(),
        }))
    }

    /// Creates a gateway whose log has `count` small entries.
    pub(crate) fn with_entries(count: u64) -> Self {
        let gateway = Self::new();
        for number in 0..count {
            gateway.append_output(number);
        }
        gateway
    }

    /// Returns the options of a client of this gateway that starts at the earliest entry.
    pub(crate) fn options(&self) -> ResumeOptions {
        let shared = self.0.clone();
        let mut options = ResumeOptions::new("http://gateway.invalid/base/", uuid::Uuid::nil().into())
            .with_token(TOKEN)
            .with_session("a session/1")
            .with_start(Start::Earliest);
        options.dial = Some(Arc::new(move || {
            let shared = shared.clone();
            Box::pin(async move {
                let script = shared.scripts.lock().unwrap().pop_front().unwrap_or_default();
                if matches!(script.refuse, Some(Refuse::Unreachable)) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (client, server) = duplex(if script.window == 0 { 64 << 10 } else { script.window });
                tokio::spawn(async move { serve(shared, server, script).await });
                Ok(Box::new(client) as Box<dyn Transport>)
            })
        }));
        options
    }

    /// Queues a script for each of the next connections. Later connections have no faults.
    pub(crate) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.0.scripts.lock().unwrap().extend(scripts);
    }

    pub(crate) fn scripts_left(&self) -> usize {
        self.0.scripts.lock().unwrap().len()
    }

    pub(crate) fn handshakes(&self) -> Vec<Handshake> {
        self.0.handshakes.lock().unwrap().clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let changed = change(&mut self.0.log.lock().unwrap());
        self.0.changed.send_modify(|version| *version += 1);
        changed
    }

    /// Appends a stream message with this number as text. Returns the entry's `seq`.
    pub(crate) fn append_output(&self, number: u64) -> u64 {
        let content = json!({"name": "stdout", "text": number.to_string()});
        self.append(Channel::Iopub, kernel_message("stream", &json!({}), &content))
    }

    pub(crate) fn append(&self, channel: Channel, message: WireMessage) -> u64 {
        self.change(|log| log.append(channel, message))
    }

    /// Gives the next number to an entry that could not be stored, so that this entry is missing.
    pub(crate) fn lose_one(&self) {
        self.change(|log| {
            log.head += 1;
            log.slots.insert(log.head, Slot::NotStored);
        });
    }

    /// Leaves all further requests without an answer.
    pub(crate) fn answer_nothing(&self) {
        self.change(|log| log.answers = false);
    }

    /// Drops entries up to this one.
    pub(crate) fn trim(&self, last: u64) {
        self.change(|log| log.slots.retain(|seq, _| *seq > last));
    }

    /// Loses the entries after this one, and breaks all connections.
    pub(crate) fn truncate(&self, last: u64) {
        self.change(|log| {
            log.slots.retain(|seq, _| *seq <= last);
            log.head = last;
            log.generation += 1;
        });
    }

    /// Replaces the log with an empty one of another epoch, and breaks all connections.
    pub(crate) fn replace_log(&self) {
        self.change(|log| {
            log.slots.clear();
            (log.epoch, log.head) = (Epoch::random(), 0);
            log.generation += 1;
        });
    }

    pub(crate) fn end(&self) {
        self.change(|log| log.ended = true);
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.0.log.lock().unwrap().epoch
    }

    /// Returns the numbers of the earliest kept entry and the last one.
    pub(crate) fn range(&self) -> RangeInclusive<u64> {
        let log = self.0.log.lock().unwrap();
        log.earliest()..=log.head
    }

    /// Returns the entry that has or had this number in the log of this epoch.
    pub(crate) fn entry(&self, epoch: &str, seq: u64) -> Option<(Channel, WireMessage)> {
        let log = self.0.log.lock().unwrap();
        log.history.get(&(epoch.to_owned(), seq)).cloned()
    }

    /// Returns whether the log does not have the entry.
    pub(crate) fn is_missing(&self, epoch: &str, seq: u64) -> bool {
        let log = self.0.log.lock().unwrap();
        epoch != log.epoch.to_string() || !matches!(log.slots.get(&seq), Some(Slot::Entry(_)))
    }

    /// Returns how often a message with this `msg_id` was appended.
    pub(crate) fn count(&self, msg_id: &str) -> usize {
        let log = self.0.log.lock().unwrap();
        let ids = log.history.values().map(|(_, message)| message.header_ref().unwrap());
        ids.filter(|header| header.msg_id == msg_id).count()
    }
}
