//! The open comms of a kernel with their folded state, so that a page that is opened again has its widgets even while
//! the kernel is busy.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, WireMessage};
use kernel_log::{IndexUpdate, Seq};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::index_keys::{self as keys, MAX_ID};
use super::msg_type::msg_type;

/// The most comms of a kernel. Beyond that, the one that changed longest ago is forgotten.
pub(super) const MAX_COMMS: usize = 4_096;
/// The most bytes of state of all comms of a kernel. Beyond that, as for [`MAX_COMMS`].
const MAX_BYTES: usize = 32 << 20;
/// Fixed cost of a comm.
const OVERHEAD: usize = 512;
/// The target of Jupyter widgets, whose messages change its state.
const WIDGET: &str = "jupyter.widget";
/// How a widget's state refers to another widget.
const REFERENCE: &str = "IPY_MODEL_";

/// An open comm of a kernel, with its state as of the last message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comm {
    /// Its id.
    pub comm_id: String,
    /// The target that opened it on the other side, such as `jupyter.widget`.
    pub target_name: String,
    /// The data of a `comm_open` that creates it with its present state. For a widget, it has `state` and
    /// `buffer_paths`; for others, it is the data with which it was opened.
    pub data: Map<String, Value>,
    /// The metadata of its `comm_open`.
    pub metadata: Map<String, Value>,
    /// The binary parts of the state, in the order of `buffer_paths`.
    pub buffers: Vec<Bytes>,
}

impl Comm {
    /// The `comm_open` that creates it in a client.
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
struct Wire {
    comm_id: String,
    #[serde(default)]
    target_name: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

/// The data of a widget's messages.
#[derive(Default, Deserialize)]
struct Update {
    #[serde(default)]
    method: String,
    #[serde(default)]
    state: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    buffer_paths: Vec<Vec<Value>>,
}

/// An open comm.
struct Open {
    opened: Seq,
    /// The clock at its last change.
    changed: u64,
    target_name: String,
    metadata: Bytes,
    state: State,
    bytes: usize,
}

enum State {
    Widget {
        /// Verbatim, by name.
        members: BTreeMap<String, Box<RawValue>>,
        /// Binary parts and their paths.
        buffers: Vec<(Vec<Value>, Bytes)>,
    },
    Other(Box<RawValue>),
}

impl State {
    /// Replaces the members of the update.
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

    /// The ids of other widgets that the state names.
    fn references(&self) -> Vec<&str> {
        let Self::Widget { members, .. } = self else {
            return Vec::new();
        };
        let texts = members.values().map(|value| value.get());
        let after = texts.flat_map(|text| text.split(REFERENCE).skip(1));
        after.filter_map(|text| text.split('"').next()).collect()
    }
}

/// The open comms of one kernel.
#[derive(Default)]
pub(super) struct Comms {
    open: HashMap<String, Open>,
    bytes: usize,
    clock: u64,
}

impl Comms {
    /// A comm message of the kernel, or of a client, was appended as entry `seq`.
    pub(super) fn on_message(&mut self, seq: Seq, message: &WireMessage, updates: &mut Vec<IndexUpdate>) {
        let msg_type = msg_type(message);
        let Ok(wire) = serde_json::from_slice::<Wire>(message.content()) else {
            return;
        };
        if wire.comm_id.is_empty() || wire.comm_id.len() > MAX_ID {
            return;
        }
        self.clock += 1;
        match &*msg_type {
            "comm_open" => {
                updates.push(IndexUpdate::put(keys::comm(&wire.comm_id), keys::number(seq)));
                self.open(seq, wire, message);
            }
            "comm_msg" => self.change(wire, message),
            "comm_close" => {
                updates.push(IndexUpdate::remove(keys::comm(&wire.comm_id)));
                self.forget(&wire.comm_id);
            }
            _ => {}
        }
        while self.open.len() > MAX_COMMS || self.bytes > MAX_BYTES {
            let oldest = self.open.iter().min_by_key(|(_, comm)| comm.changed);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            updates.push(IndexUpdate::remove(keys::comm(&oldest)));
            self.forget(&oldest);
        }
    }

    fn open(&mut self, seq: Seq, wire: Wire, message: &WireMessage) {
        let state = if wire.target_name == WIDGET {
            let mut state = State::Widget {
                members: BTreeMap::new(),
                buffers: Vec::new(),
            };
            let update = wire.data.and_then(|data| serde_json::from_str(data.get()).ok());
            state.update(update.unwrap_or_default(), message.buffers());
            state
        } else {
            State::Other(wire.data.unwrap_or_default())
        };
        self.forget(&wire.comm_id);
        let metadata = Bytes::copy_from_slice(message.metadata());
        let bytes = OVERHEAD + wire.comm_id.len() + metadata.len() + state.bytes();
        self.bytes += bytes;
        let open = Open {
            opened: seq,
            changed: self.clock,
            target_name: wire.target_name,
            metadata,
            state,
            bytes,
        };
        self.open.insert(wire.comm_id, open);
    }

    fn change(&mut self, wire: Wire, message: &WireMessage) {
        let Some(comm) = self.open.get_mut(&wire.comm_id) else {
            return;
        };
        comm.changed = self.clock;
        if comm.target_name != WIDGET {
            return;
        }
        let update = wire
            .data
            .and_then(|data| serde_json::from_str::<Update>(data.get()).ok());
        let Some(update) = update.filter(|update| matches!(&*update.method, "update" | "echo_update")) else {
            return;
        };
        let before = comm.state.bytes();
        comm.state.update(update, message.buffers());
        comm.bytes = comm.bytes - before + comm.state.bytes();
        self.bytes = self.bytes - before + comm.state.bytes();
    }

    fn forget(&mut self, comm_id: &str) {
        if let Some(comm) = self.open.remove(comm_id) {
            self.bytes -= comm.bytes;
        }
    }

    /// The kernel's process ended, and with it all comms that were opened before this entry.
    pub(super) fn end(&mut self, opened_before: Seq, updates: &mut Vec<IndexUpdate>) {
        let ended = self.open.extract_if(|_, comm| comm.opened < opened_before);
        for (comm_id, comm) in ended {
            updates.push(IndexUpdate::remove(keys::comm(&comm_id)));
            self.bytes -= comm.bytes;
        }
    }

    /// The comms that were opened up to entry `until`, each after those that its state refers to.
    pub(super) fn list(&self, until: Seq) -> Vec<Comm> {
        let mut by_age: Vec<_> = self.open.iter().filter(|(_, comm)| comm.opened <= until).collect();
        by_age.sort_by_key(|(_, comm)| comm.opened);
        let known: HashMap<&str, &Open> = by_age.iter().map(|(id, comm)| (id.as_str(), *comm)).collect();
        let mut listed = Vec::with_capacity(by_age.len());
        let mut visited = BTreeSet::new();
        for (id, _) in by_age {
            // Depth first, without recursion, because kernels choose the depth.
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

fn to_comm(id: &str, comm: &Open) -> Comm {
    let (data, buffers) = comm.state.data();
    Comm {
        comm_id: id.to_owned(),
        target_name: comm.target_name.clone(),
        data,
        metadata: serde_json::from_slice(&comm.metadata).unwrap_or_default(),
        buffers,
    }
}

/// Whether this type belongs to comms.
pub(super) fn is_comm(msg_type: &str) -> bool {
    matches!(msg_type, "comm_open" | "comm_msg" | "comm_close")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(msg_type: &str, content: Value, buffers: &[&'static str]) -> WireMessage {
        let header = json!({"msg_id": "1", "msg_type": msg_type}).to_string();
        let metadata = json!({"version": "2.1.0"}).to_string();
        let parts = [header, "{}".to_owned(), metadata, content.to_string()];
        WireMessage::from_parts(
            parts.map(Bytes::from),
            buffers.iter().map(|buffer| Bytes::from_static(buffer.as_bytes())),
        )
    }

    fn apply(comms: &mut Comms, seq: u64, message: &WireMessage) {
        comms.on_message(Seq(seq), message, &mut Vec::new());
    }

    fn open(id: &str, state: Value) -> WireMessage {
        let data = json!({"state": state, "buffer_paths": []});
        message(
            "comm_open",
            json!({"comm_id": id, "target_name": WIDGET, "data": data}),
            &[],
        )
    }

    fn update(id: &str, method: &str, state: Value, paths: Value, buffers: &[&'static str]) -> WireMessage {
        let data = json!({"method": method, "state": state, "buffer_paths": paths});
        message("comm_msg", json!({"comm_id": id, "data": data}), buffers)
    }

    #[test]
    fn updates_are_folded_into_the_state_with_its_buffers() {
        let mut comms = Comms::default();
        apply(
            &mut comms,
            1,
            &open("a", json!({"value": 1, "max": 10, "layout": "IPY_MODEL_b"})),
        );
        apply(
            &mut comms,
            2,
            &update(
                "a",
                "update",
                json!({"value": 2, "image": {"x": 1}}),
                json!([["image", "data"], ["raw"]]),
                &["one", "two"],
            ),
        );
        apply(
            &mut comms,
            3,
            &update("a", "custom", json!({"value": 3}), json!([]), &[]),
        );
        apply(
            &mut comms,
            4,
            &update("a", "echo_update", json!({"max": 20}), json!([["raw"]]), &["three"]),
        );
        let listed = comms.list(Seq(9));
        assert_eq!(listed.len(), 1);
        let state = json!({"value": 2, "max": 20, "layout": "IPY_MODEL_b", "image": {"x": 1}});
        assert_eq!(listed[0].data["state"], state);
        assert_eq!(listed[0].data["buffer_paths"], json!([["image", "data"], ["raw"]]));
        assert_eq!(listed[0].buffers, ["one", "three"]);
        assert_eq!(Value::from(listed[0].metadata.clone()), json!({"version": "2.1.0"}));
        // A new value without binary parts replaces the one with them.
        apply(
            &mut comms,
            5,
            &update("a", "update", json!({"image": null, "raw": null}), json!([]), &[]),
        );
        assert_eq!(comms.list(Seq(9))[0].buffers, Vec::<Bytes>::new());
        apply(&mut comms, 6, &message("comm_close", json!({"comm_id": "a"}), &[]));
        assert!(comms.list(Seq(9)).is_empty());
        assert_eq!(comms.bytes, 0);
    }

    #[test]
    fn a_comm_follows_those_that_it_refers_to() {
        let mut comms = Comms::default();
        apply(
            &mut comms,
            1,
            &open(
                "box",
                json!({"children": ["IPY_MODEL_a", "IPY_MODEL_b"], "layout": "IPY_MODEL_none"}),
            ),
        );
        apply(&mut comms, 2, &open("a", json!({"style": "IPY_MODEL_style"})));
        apply(&mut comms, 3, &open("b", json!({"link": "IPY_MODEL_box"})));
        apply(&mut comms, 4, &open("style", json!({})));
        apply(&mut comms, 5, &open("late", json!({})));
        let ids: Vec<_> = comms.list(Seq(4)).into_iter().map(|comm| comm.comm_id).collect();
        let place = |id: &str| ids.iter().position(|listed| listed == id).unwrap();
        assert_eq!(ids.len(), 4);
        assert!(place("style") < place("a"));
        assert!(place("a") < place("box"));
        assert_eq!(comms.info(Some("other"))["comms"], json!({}));
        assert_eq!(comms.info(Some(WIDGET))["comms"].as_object().unwrap().len(), 5);
    }

    #[test]
    fn comms_are_bounded_in_number_and_size() {
        let mut comms = Comms::default();
        let mut updates = Vec::new();
        for number in 0..=MAX_COMMS as u64 {
            comms.on_message(Seq(number), &open(&number.to_string(), json!({})), &mut updates);
        }
        assert_eq!(comms.open.len(), MAX_COMMS);
        assert!(!comms.open.contains_key("0"));
        let large = "x".repeat(MAX_BYTES / 3);
        for id in ["large 1", "large 2", "large 3"] {
            comms.on_message(Seq(9_999), &open(id, json!({"value": large})), &mut updates);
            assert!(comms.bytes <= MAX_BYTES);
        }
        assert_eq!(comms.open.len(), 2);
        let huge = "x".repeat(MAX_BYTES);
        comms.on_message(
            Seq(9_999),
            &update("large 3", "update", json!({"value": huge}), json!([]), &[]),
            &mut updates,
        );
        assert!(comms.open.is_empty() && comms.bytes == 0, "{}", comms.bytes);
        let removed = updates
            .iter()
            .filter(|update| matches!(update, IndexUpdate { value: None, .. }));
        assert_eq!(removed.count(), MAX_COMMS + 1 + 3);
    }

    #[test]
    fn invalid_messages_change_nothing() {
        let mut comms = Comms::default();
        apply(&mut comms, 1, &open("a", json!({"value": 1})));
        for content in [
            json!(7),
            json!({}),
            json!({"comm_id": 1}),
            json!({"comm_id": ""}),
            json!({"comm_id": "a", "data": 7}),
        ] {
            for msg_type in ["comm_msg", "comm_close"] {
                if content.get("data").is_none() {
                    apply(&mut comms, 2, &message(msg_type, content.clone(), &[]));
                }
            }
            apply(&mut comms, 3, &message("comm_msg", content, &[]));
        }
        assert_eq!(comms.list(Seq(9))[0].data["state"], json!({"value": 1}));
        // Without data, it is a widget without state.
        apply(
            &mut comms,
            4,
            &message(
                "comm_open",
                json!({"comm_id": "b", "target_name": WIDGET, "data": null}),
                &[],
            ),
        );
        assert_eq!(comms.list(Seq(9)).len(), 2);
    }
}
