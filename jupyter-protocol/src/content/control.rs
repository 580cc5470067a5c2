//! What may not wait behind running code: shutdown, interrupt, subshells, usage.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `shutdown_request`: end.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-shutdown>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// Whether a new kernel will be started in its place.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub restart: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ShutdownRequest {
    /// A request to end, before a restart or for good.
    #[must_use]
    pub fn new(restart: bool) -> Self {
        Self {
            restart,
            extra: Map::new(),
        }
    }
}

/// The result in a `shutdown_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownReply {
    /// As in the request.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub restart: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ShutdownReply {}

/// `interrupt_request`: stop what runs, where the kernelspec's `interrupt_mode` is `message`.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-interrupt>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in an `interrupt_reply`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptReply {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for InterruptReply {}

/// `create_subshell_request`: make a subshell, which runs requests beside the main one (JEP 91).
///
/// <https://jupyter.org/enhancement-proposals/91-kernel-subshells/kernel-subshells.html>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubshellRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `create_subshell_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubshellReply {
    /// The new subshell, to be named in requests' headers.
    pub subshell_id: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CreateSubshellReply {}

/// `delete_subshell_request`: end a subshell (JEP 91).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSubshellRequest {
    /// The subshell.
    pub subshell_id: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `delete_subshell_reply`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSubshellReply {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for DeleteSubshellReply {}

/// `list_subshell_request`: which subshells are there? (JEP 91)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSubshellRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `list_subshell_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSubshellReply {
    /// The subshells, without the main one.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub subshell_id: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ListSubshellReply {}

/// `usage_request`: what does the kernel use? An addition of ipykernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRequest {
    /// Fields that ipykernel does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `usage_reply`. Each is absent where the kernel cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageReply {
    /// The name of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The kernel's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    /// What the kernel and its children use of a processor, in percent of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_cpu: Option<f64>,
    /// What the kernel and its children use of memory, in bytes.
    #[serde(
        default,
        deserialize_with = "lenient::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub kernel_memory: Option<u64>,
    /// What all processes use of the processors, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu_percent: Option<f64>,
    /// How many cores the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u64>,
    /// The machine's memory, in bytes: `total`, `available`, `used`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_virtual_memory: Option<Map<String, Value>>,
    /// Fields that ipykernel does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for UsageReply {}
