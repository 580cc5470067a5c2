//! What a kernel is and where its sockets are.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `kernel_info_request`: who are you?
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-info>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfoRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `kernel_info_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfoReply {
    /// The protocol's version that the kernel speaks, such as `5.3`. Do not conclude features from it: see
    /// [`supports`](Self::supports).
    #[serde(default, deserialize_with = "lenient::text")]
    pub protocol_version: String,
    /// The kernel's name, such as `ipython`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub implementation: String,
    /// The kernel's version.
    #[serde(default, deserialize_with = "lenient::text")]
    pub implementation_version: String,
    /// The language that the kernel runs.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub language_info: LanguageInfo,
    /// A greeting for a console.
    #[serde(default, deserialize_with = "lenient::text")]
    pub banner: String,
    /// Whether the kernel can debug (protocol 5.4; superseded by the feature `debugger`).
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub debugger: bool,
    /// Links for a help menu.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub help_links: Vec<HelpLink>,
    /// Optional parts of the protocol that the kernel has (JEP 92).
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub supported_features: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl KernelInfoReply {
    /// Whether the kernel says that it has an optional part of the protocol, such as `debugger` or
    /// `kernel subshells`.
    #[must_use]
    pub fn supports(&self, feature: &str) -> bool {
        self.supported_features.iter().any(|supported| supported == feature) || (feature == "debugger" && self.debugger)
    }
}

impl ReplyBody for KernelInfoReply {}

/// The language that a kernel runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageInfo {
    /// The language's name, as in the kernelspec.
    #[serde(default, deserialize_with = "lenient::text")]
    pub name: String,
    /// The language's version.
    #[serde(default, deserialize_with = "lenient::text")]
    pub version: String,
    /// The MIME type of its source files.
    #[serde(default, deserialize_with = "lenient::text")]
    pub mimetype: String,
    /// The extension of its source files, with the dot.
    #[serde(default, deserialize_with = "lenient::text")]
    pub file_extension: String,
    /// Its lexer in Pygments, where it is not `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pygments_lexer: Option<String>,
    /// Its mode in CodeMirror, a name or an object, where it is not `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codemirror_mode: Option<Value>,
    /// Its exporter in nbconvert, where it is not `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbconvert_exporter: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An entry of a help menu.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelpLink {
    /// What the menu shows.
    #[serde(default, deserialize_with = "lenient::text")]
    pub text: String,
    /// Where it leads.
    #[serde(default, deserialize_with = "lenient::text")]
    pub url: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `connect_request`: where are your sockets? Deprecated since protocol 5.1.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#connect>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The ports of a kernel's sockets: the result in a `connect_reply`, and what a kernel announces in a handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// The shell socket's port.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub shell_port: u16,
    /// The iopub socket's port.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub iopub_port: u16,
    /// The stdin socket's port.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub stdin_port: u16,
    /// The heartbeat socket's port.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub hb_port: u16,
    /// The control socket's port.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub control_port: u16,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ConnectReply {}

/// `handshake_request`: the kernel tells its starter the ports that it has bound (JEP 66).
///
/// <https://github.com/jupyter/enhancement-proposals/blob/master/66-jupyter-handshaking/jupyter-handshaking.md>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// The shell socket's port.
    pub shell_port: u16,
    /// The iopub socket's port.
    pub iopub_port: u16,
    /// The stdin socket's port.
    pub stdin_port: u16,
    /// The heartbeat socket's port.
    pub hb_port: u16,
    /// The control socket's port.
    pub control_port: u16,
    /// Fields that the proposal does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `handshake_reply`: nothing but that the starter knows the ports now (JEP 66).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeReply {
    /// Fields that the proposal does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for HandshakeReply {}
