//! The open comms of a kernel with their folded state, so that a reopened page gets its widgets even while the
//! kernel is busy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, LogLimiter, WireMessage};
use kernel_log::{IndexUpdate, Seq};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::index_keys::{self as keys, MAX_ID};
use super::msg_type::msg_type;

/// The most open comms of a kernel.
pub(super) const MAX_COMMS: usize = 4_096;
/// The most bytes of all open comms of a kernel. Beyond either limit, a comm with more than half of these bytes is
/// forgotten, else the one that changed longest ago.
const MAX_BYTES: usize = 32 << 20;
/// Fixed cost of an open comm, in bytes.
const OVERHEAD: usize = 512;
/// The target name of Jupyter widgets. For other comms, only the data of their `comm_open` is kept.
pub(super) const WIDGET: &str = "jupyter.widget";
/// Prefix of another widget's id in a widget's state.
const REFERENCE: &str = "IPY_MODEL_";

/// An open comm of a kernel, with its state as of the last message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comm {
    /// The comm's id.
    pub comm_id: String,
    /// The name of the comm's target, such as `jupyter.widget`.
    pub target_name: String,
    /// The data of a `comm_open` that recreates the comm: for a widget, its current `state` and `buffer_paths`; for
    /// other comms, the data with which they were opened.
    pub data: Map<String, Value>,
    /// The metadata of the comm's `comm_open`.
    pub metadata: Map<String, Value>,
    /// The binary parts of the state, in the order of `buffer_paths`.
    pub buffers: Vec<Bytes>,
}

impl Comm {
    /// The `comm_open` that recreates the comm in a client.
    pub(crate) fn open_message(&self, session: &str, parent: &Header) -> WireMessage {
        let content = json!({"comm_id": self.comm_id, "target_name": self.target_name, "data": self.data});
        let message = Message::new(Content::parse("comm_open", content.to_string().as_bytes()), session);
        message
            .with_parent(parent.clone())
            .with_metadata(self.metadata.clone())
            .with_buffers(self.buffers.iter().cloned())
            .to_wire()
    }
}

#[derive(Deserialize)]
struct CommContent {
    comm_id: String,
    #[serde(default)]
    target_name: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

/// The data of a widget's message.
#[derive(Default, Deserialize)]
struct Update {
    #[serde(default)]
    method: String,
    #[serde(default)]
    state: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    buffer_paths: Vec<Vec<Value>>,
}

/// An open comm. Clones share the state until it changes.
#[derive(Clone)]
struct OpenComm {
    opened: Seq,
    /// [`Comms::clock`] at the comm's last change.
    changed: u64,
    target_name: String,
    metadata: Bytes,
    state: Arc<State>,
    bytes: usize,
}

#[derive(Clone)]
enum State {
    Widget {
        /// The members of the state, verbatim, by name.
        members: BTreeMap<String, Box<RawValue>>,
        /// Binary parts and their paths.
        buffers: Vec<(Vec<Value>, Bytes)>,
    },
    Other(Box<RawValue>),
}

impl State {
    /// Replaces the members that the update contains.
    fn update(&mut self, update: Update, buffers: &[Bytes]) {
        let Self::Widget {
            members,
            buffers: all_buffers,
        } = self
        else {
            return;
        };
        let named = |path: &[Value]| path.first().and_then(Value::as_str).map(str::to_owned);
        let mut replaced: BTreeSet<String> = update.state.keys().cloned().collect();
        replaced.extend(update.buffer_paths.iter().filter_map(|path| named(path)));
        all_buffers.retain(|(path, _)| named(path).is_none_or(|name| !replaced.contains(&name)));
        for name in &replaced {
            members.remove(name);
        }
        members.extend(update.state);
        // Copied, because a buffer shares memory with its message.
        let buffers = buffers.iter().map(|buffer| Bytes::copy_from_slice(buffer));
        all_buffers.extend(update.buffer_paths.into_iter().zip(buffers));
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Widget { members, buffers } => {
                let members = members.iter().map(|(name, value)| name.len() + value.get().len() + 64);
                let buffers = buffers.iter().map(|(path, buffer)| 64 * path.len() + buffer.len());
                members.sum::<usize>() + buffers.sum::<usize>()
            }
            Self::Other(data) => data.get().len(),
        }
    }

    fn data(&self) -> (Map<String, Value>, Vec<Bytes>) {
        let parsed = |json: &RawValue| serde_json::from_str(json.get()).unwrap_or_default();
        match self {
            Self::Widget { members, buffers } => {
                let state: Map<String, Value> = members
                    .iter()
                    .map(|(name, value)| (name.clone(), parsed(value)))
                    .collect();
                let (paths, buffers): (Vec<_>, Vec<_>) = buffers.iter().cloned().unzip();
                let data = [
                    ("state".to_owned(), state.into()),
                    ("buffer_paths".to_owned(), json!(paths)),
                ];
                (Map::from_iter(data), buffers)
            }
            Self::Other(data) => match parsed(data) {
                Value::Object(data) => (data, Vec::new()),
                _ => (Map::new(), Vec::new()),
            },
        }
    }

    /// The ids of the widgets to which the state refers.
    fn references(&self) -> Vec<&str> {
        let Self::Widget { members, .. } = self else {
            return Vec::new();
        };
        let texts = members.values().map(|value| value.get());
        let after = texts.flat_map(|text| text.split(REFERENCE).skip(1));
        after.filter_map(|text| text.split('"').next()).collect()
    }
}

/// The open comms of one kernel. Clones share the states until they change.
#[derive(Clone, Default)]
pub(super) struct Comms {
    open: HashMap<String, OpenComm>,
    bytes: usize,
    /// Logical clock: the number of messages so far.
    clock: u64,
    is_incomplete: bool,
}

impl Comms {
    /// Applies a comm message of the kernel or of a client that was appended as entry `seq`.
    pub(super) fn on_message(&mut self, seq: Seq, message: &WireMessage, updates: &mut Vec<IndexUpdate>) {
        let msg_type = msg_type(message);
        let Ok(content) = serde_json::from_slice::<CommContent>(message.content()) else {
            return;
        };
        if content.comm_id.is_empty() || content.comm_id.len() > MAX_ID {
            return;
        }
        self.clock += 1;
        match &*msg_type {
            "comm_open" => {
                updates.push(IndexUpdate::put(keys::comm(&content.comm_id), keys::number(seq)));
                self.open(seq, content, message);
            }
            "comm_msg" => self.change(content, message),
            "comm_close" => {
                updates.push(IndexUpdate::remove(keys::comm(&content.comm_id)));
                self.forget(&content.comm_id);
            }
            _ => {}
        }
        while self.open.len() > MAX_COMMS || self.bytes > MAX_BYTES {
            // A large comm must not displace all others.
            let large = self.open.iter().find(|(_, comm)| comm.bytes > MAX_BYTES / 2);
            let oldest = || self.open.iter().min_by_key(|(_, comm)| comm.changed);
            let Some((forgotten, bytes)) = large.or_else(oldest).map(|(id, comm)| (id.clone(), comm.bytes)) else {
                return;
            };
            static FORGOTTEN: LogLimiter = LogLimiter::new();
            if let Some(suppressed) = FORGOTTEN.due() {
                warn!(
                    comm_id = forgotten,
                    bytes, suppressed, "forgot an open comm, because there are too many, or they are too large"
                );
            }
            self.is_incomplete = true;
            updates.push(IndexUpdate::put(keys::COMMS_INCOMPLETE, Bytes::new()));
            updates.push(IndexUpdate::remove(keys::comm(&forgotten)));
            self.forget(&forgotten);
        }
    }

    /// Whether comms that may still be open were forgotten.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    fn open(&mut self, seq: Seq, content: CommContent, message: &WireMessage) {
        let state = if content.target_name == WIDGET {
            let mut state = State::Widget {
                members: BTreeMap::new(),
                buffers: Vec::new(),
            };
            let update = content.data.and_then(|data| serde_json::from_str(data.get()).ok());
            state.update(update.unwrap_or_default(), message.buffers());
            state
        } else {
            State::Other(content.data.unwrap_or_default())
        };
        self.forget(&content.comm_id);
        let metadata = Bytes::copy_from_slice(message.metadata());
        let bytes = OVERHEAD + content.comm_id.len() + metadata.len() + state.bytes();
        self.bytes += bytes;
        let open = OpenComm {
            opened: seq,
            changed: self.clock,
            target_name: content.target_name,
            metadata,
            state: Arc::new(state),
            bytes,
        };
        self.open.insert(content.comm_id, open);
    }

    fn change(&mut self, content: CommContent, message: &WireMessage) {
        let Some(comm) = self.open.get_mut(&content.comm_id) else {
            return;
        };
        comm.changed = self.clock;
        if comm.target_name != WIDGET {
            return;
        }
        let update = content
            .data
            .and_then(|data| serde_json::from_str::<Update>(data.get()).ok());
        let Some(update) = update.filter(|update| matches!(&*update.method, "update" | "echo_update")) else {
            return;
        };
        let before = comm.state.bytes();
        Arc::make_mut(&mut comm.state).update(update, message.buffers());
        comm.bytes = comm.bytes - before + comm.state.bytes();
        self.bytes = self.bytes - before + comm.state.bytes();
    }

    fn forget(&mut self, comm_id: &str) {
        if let Some(comm) = self.open.remove(comm_id) {
            self.bytes -= comm.bytes;
        }
    }

    /// Ends all comms that were opened before this entry, because the kernel's process ended.
    pub(super) fn end(&mut self, opened_before: Seq, updates: &mut Vec<IndexUpdate>) {
        self.is_incomplete = false;
        let ended = self.open.extract_if(|_, comm| comm.opened < opened_before);
        for (comm_id, comm) in ended {
            updates.push(IndexUpdate::remove(keys::comm(&comm_id)));
            self.bytes -= comm.bytes;
        }
    }

    /// The comms that were opened up to entry `until`. Comms come after those that their state refers to.
    pub(super) fn list(&self, until: Seq) -> Vec<Comm> {
        let mut by_age: Vec<_> = self.open.iter().filter(|(_, comm)| comm.opened <= until).collect();
        by_age.sort_by_key(|(_, comm)| comm.opened);
        let known: HashMap<&str, &OpenComm> = by_age.iter().map(|(id, comm)| (id.as_str(), *comm)).collect();
        let mut listed = Vec::with_capacity(by_age.len());
        let mut visited = BTreeSet::new();
        for (id, _) in by_age {
            // Depth first, without recursion, because the kernel controls the depth.
            let mut stack = vec![(id.as_str(), false)];
            while let Some((id, is_done)) = stack.pop() {
                let Some(comm) = known.get(id) else { continue };
                if is_done {
                    listed.push(to_comm(id, comm));
                } else if visited.insert(id) {
                    stack.push((id, true));
                    stack.extend(comm.state.references().into_iter().map(|id| (id, false)));
                }
            }
        }
        listed
    }

    /// The ids and targets of the open comms, as a `comm_info_reply` has them.
    pub(super) fn info(&self, target_name: Option<&str>) -> Value {
        let comms = self
            .open
            .iter()
            .filter(|(_, comm)| target_name.is_none_or(|target| comm.target_name == target));
        let comms: Map<String, Value> = comms
            .map(|(id, comm)| (id.clone(), json!({"target_name": comm.target_name})))
            .collect();
        json!({"status": "ok", "comms": comms})
    }
}

fn to_comm(id: &str, comm: &OpenComm) -> Comm {
    let (data, buffers) = comm.state.data();
    Comm {
        comm_id: id.to_owned(),
        target_name: comm.target_name.clone(),
        data,
        metadata: serde_json::from_slice(&comm.metadata).unwrap_or_default(),
        buffers,
    }
}

/// Whether messages of this type belong to comms.
pub(super) fn is_comm(msg_type: &str) -> bool {
    matches!(msg_type, "comm_open" | "comm_msg" | "comm_close")
}

#[cfg(test)]
mod tests;
