//! Comms: messages between objects in the kernel and in the front end, in both directions.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#custom-messages>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `comm_open`: a comm begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommOpen {
    /// The comm, unique in the kernel.
    pub comm_id: String,
    /// What at the other side is to handle it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub target_name: String,
    /// The module of the front end that has the target, where it must be loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_module: Option<String>,
    /// What the two sides agree on.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_msg`: a message on a comm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommMsg {
    /// The comm.
    pub comm_id: String,
    /// What the two sides agree on.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_close`: a comm ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommClose {
    /// The comm.
    pub comm_id: String,
    /// What the two sides agree on.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_info_request`: which comms are open?
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#comm-info>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommInfoRequest {
    /// Only those of this target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_name: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `comm_info_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommInfoReply {
    /// The open comms: id → `{target_name}`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub comms: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CommInfoReply {}
