//! Information about a kernel and the ports of its sockets.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `kernel_info_request`: requests information about the kernel.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-info>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfoRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `kernel_info_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfoReply {
    /// Protocol version of the kernel, such as `5.3`. It does not determine which optional features the kernel has: use
    /// [`supports`](Self::supports).
    #[serde(default, deserialize_with = "lenient::text")]
    pub protocol_version: String,
    /// Name of the kernel, such as `ipython`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub implementation: String,
    /// Version of the kernel.
    #[serde(default, deserialize_with = "lenient::text")]
    pub implementation_version: String,
    /// The language that the kernel runs.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub language_info: LanguageInfo,
    /// Banner that consoles display.
    #[serde(default, deserialize_with = "lenient::text")]
    pub banner: String,
    /// Whether the kernel has a debugger (protocol 5.4, superseded by the feature `debugger`).
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub debugger: bool,
    /// Links for a help menu.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub help_links: Vec<HelpLink>,
    /// Optional features of the protocol that the kernel supports (JEP 92).
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub supported_features: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl KernelInfoReply {
    /// Returns whether the kernel supports an optional feature, such as `debugger` or `kernel subshells`.
    #[must_use]
    pub fn supports(&self, feature: &str) -> bool {
        self.supported_features.iter().any(|supported| supported == feature) || (feature == "debugger" && self.debugger)
    }
}

impl ReplyBody for KernelInfoReply {}

/// The language that a kernel runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageInfo {
    /// Name of the language, as in the kernelspec.
    #[serde(default, deserialize_with = "lenient::text")]
    pub name: String,
    /// Version of the language.
    #[serde(default, deserialize_with = "lenient::text")]
    pub version: String,
    /// MIME type of source files.
    #[serde(default, deserialize_with = "lenient::text")]
    pub mimetype: String,
    /// Extension of source files, with the dot.
    #[serde(default, deserialize_with = "lenient::text")]
    pub file_extension: String,
    /// Pygments lexer, if it is not `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pygments_lexer: Option<String>,
    /// CodeMirror mode, a name or an object, if it is not `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codemirror_mode: Option<Value>,
    /// nbconvert exporter, if it is not `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbconvert_exporter: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An entry of a help menu.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelpLink {
    /// Text of the entry.
    #[serde(default, deserialize_with = "lenient::text")]
    pub text: String,
    /// Target of the link.
    #[serde(default, deserialize_with = "lenient::text")]
    pub url: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `connect_request`: requests the ports of the kernel's sockets. Deprecated since protocol 5.1.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#connect>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `connect_reply`: the ports of the kernel's sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Port of the shell socket.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub shell_port: u16,
    /// Port of the iopub socket.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub iopub_port: u16,
    /// Port of the stdin socket.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub stdin_port: u16,
    /// Port of the heartbeat socket.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub hb_port: u16,
    /// Port of the control socket.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub control_port: u16,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ConnectReply {}

/// `handshake_request`: tells the starter of a kernel which ports the kernel has bound (JEP 66).
///
/// <https://github.com/jupyter/enhancement-proposals/blob/master/66-jupyter-handshaking/jupyter-handshaking.md>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// Port of the shell socket.
    pub shell_port: u16,
    /// Port of the iopub socket.
    pub iopub_port: u16,
    /// Port of the stdin socket.
    pub stdin_port: u16,
    /// Port of the heartbeat socket.
    pub hb_port: u16,
    /// Port of the control socket.
    pub control_port: u16,
    /// Fields that JEP 66 does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `handshake_reply`, which acknowledges the ports (JEP 66).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeReply {
    /// Fields that JEP 66 does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for HandshakeReply {}
