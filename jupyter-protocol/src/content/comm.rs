//! Comms: bidirectional messages between objects in the kernel and in the front end.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#custom-messages>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `comm_open`: opens a comm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommOpen {
    /// Id of the comm, unique in the kernel.
    pub comm_id: String,
    /// Name of the handler on the other side.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub target_name: String,
    /// Module that the front end loads to find the target, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_module: Option<String>,
    /// Data, whose schema the target defines.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_msg`: a message on a comm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommMsg {
    /// Id of the comm.
    pub comm_id: String,
    /// Data, whose schema the target defines.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_close`: closes a comm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommClose {
    /// Id of the comm.
    pub comm_id: String,
    /// Data, whose schema the target defines.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub data: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `comm_info_request`: requests the open comms.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#comm-info>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommInfoRequest {
    /// Restricts the result to comms of this target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_name: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `comm_info_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommInfoReply {
    /// Open comms: objects with a `target_name`, by comm id.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub comms: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CommInfoReply {}
