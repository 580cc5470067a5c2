//! Messages on control, which do not wait for running code: shutdown, interrupt, subshells and usage.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `shutdown_request`: shuts the kernel down.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-shutdown>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// Whether the kernel will be restarted.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub restart: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ShutdownRequest {
    /// Creates a request. `restart` is whether the kernel will be restarted.
    #[must_use]
    pub fn new(restart: bool) -> Self {
        Self {
            restart,
            extra: Map::new(),
        }
    }
}

/// Result of a `shutdown_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownReply {
    /// Value from the request.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub restart: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ShutdownReply {}

/// `interrupt_request`: interrupts running code, if the kernelspec's `interrupt_mode` is `message`.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-interrupt>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of an `interrupt_reply`, which has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptReply {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for InterruptReply {}

/// `create_subshell_request`: creates a subshell, which runs requests concurrently with the main shell (JEP 91).
///
/// <https://jupyter.org/enhancement-proposals/91-kernel-subshells/kernel-subshells.html>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubshellRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `create_subshell_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubshellReply {
    /// Id of the new subshell, for the headers of requests.
    pub subshell_id: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CreateSubshellReply {}

/// `delete_subshell_request`: deletes a subshell (JEP 91).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSubshellRequest {
    /// Id of the subshell.
    pub subshell_id: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `delete_subshell_reply`, which has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSubshellReply {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for DeleteSubshellReply {}

/// `list_subshell_request`: requests the ids of the subshells (JEP 91).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSubshellRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `list_subshell_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSubshellReply {
    /// Ids of the subshells, without the main shell.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub subshell_id: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ListSubshellReply {}

/// `usage_request`: requests the resource usage of the kernel. An extension of ipykernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRequest {
    /// Fields that ipykernel does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `usage_reply`. Values that are not available are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageReply {
    /// Host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Process id of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    /// CPU usage of the kernel and its children, in percent of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_cpu: Option<f64>,
    /// Memory usage of the kernel and its children, in bytes.
    #[serde(
        default,
        deserialize_with = "lenient::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub kernel_memory: Option<u64>,
    /// CPU usage of the host, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu_percent: Option<f64>,
    /// Number of CPU cores of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u64>,
    /// Memory of the host in bytes: `total`, `available`, `used` and others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_virtual_memory: Option<Map<String, Value>>,
    /// Fields that ipykernel does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for UsageReply {}
