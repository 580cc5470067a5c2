//! Typed content of every message of the protocol.
//!
//! Parsing is lenient, because real kernels omit required fields: an absent or null field gets its default, unless the
//! content means nothing without the field, such as `code` or `comm_id`. Unknown names and fields are kept. Content
//! that cannot be parsed becomes [`Content::Invalid`], which holds the original bytes. Serializing is strict: it writes
//! every required field of protocol 5.4.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html>

mod assist;
mod comm;
mod control;
mod cursor;
mod debug;
mod execute;
mod iopub;
mod kernel_info;
pub(crate) mod lenient;
mod media;
mod reply;
mod stdin;

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use crate::channel::Channel;

pub use assist::{
    CompleteReply, CompleteRequest, Completeness, HistoryAccess, HistoryEntry, HistoryInput, HistoryReply,
    HistoryRequest, InspectReply, InspectRequest, IsCompleteReply, IsCompleteRequest,
};
pub use comm::{CommClose, CommInfoReply, CommInfoRequest, CommMsg, CommOpen};
pub use control::{
    CreateSubshellReply, CreateSubshellRequest, DeleteSubshellReply, DeleteSubshellRequest, InterruptReply,
    InterruptRequest, ListSubshellReply, ListSubshellRequest, ShutdownReply, ShutdownRequest, UsageReply, UsageRequest,
};
pub use cursor::{byte_offset, cursor_pos};
pub use debug::{DebugEvent, DebugReply, DebugRequest};
pub use execute::{ExecuteReply, ExecuteRequest};
pub use iopub::{
    ClearOutput, DisplayData, ErrorOutput, ExecuteInput, ExecuteResult, ExecutionState, IopubWelcome, Status, Stream,
    StreamName, Transient, UpdateDisplayData,
};
pub use kernel_info::{
    ConnectReply, ConnectRequest, HandshakeReply, HandshakeRequest, HelpLink, KernelInfoReply, KernelInfoRequest,
    LanguageInfo,
};
pub use lenient::whole_number;
pub use media::MimeBundle;
pub use reply::{NoResult, Reply, ReplyBody, ReplyError};
pub use stdin::{InputReply, InputRequest};

/// Content of a message type that is not in the protocol, as the original JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownContent {
    /// Message type.
    pub msg_type: String,
    /// Content as JSON.
    pub json: Bytes,
}

impl UnknownContent {
    /// Creates content of a message type that is not in the protocol.
    #[must_use]
    pub fn new(msg_type: impl Into<String>, content: &Value) -> Self {
        Self {
            msg_type: msg_type.into(),
            json: content.to_string().into(),
        }
    }

    /// Parses the content.
    ///
    /// # Errors
    /// The error of the parser, if the content is not JSON.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }
}

/// Content that does not fit its message type, as the original bytes with a description of the problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidContent {
    /// Message type.
    pub msg_type: String,
    /// Original bytes, which need not be JSON.
    pub json: Bytes,
    /// Why the content is invalid.
    pub problem: String,
}

macro_rules! contents {
    ($($(#[$meta:meta])* $msg_type:literal $variant:ident($content:ty),)+) => {
        /// Content of a message.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Content {
            $(
                #[doc = concat!("`", $msg_type, "`")]
                $(#[$meta])*
                $variant($content),
            )+
            /// Content of a message type that is not in the protocol. Serializes unchanged.
            Unknown(UnknownContent),
            /// Content that does not fit its message type. Serializes unchanged.
            Invalid(InvalidContent),
        }

        impl Content {
            /// The message types with a typed variant: those of the protocol, and ipykernel's `usage_request` and
            /// `usage_reply`.
            pub const MSG_TYPES: &[&str] = &[$($msg_type),+];

            /// Parses content, which never fails.
            ///
            /// JSON of an unknown type becomes [`Content::Unknown`]; content that cannot be parsed becomes
            /// [`Content::Invalid`]. Bytes that are not UTF-8 become replacement characters, as in `jupyter_client`.
            #[must_use]
            pub fn parse(msg_type: &str, json: &[u8]) -> Self {
                Self::parse_typed(msg_type, json).unwrap_or_else(|error| {
                    // Kernels send file names and output of programs, which may have any encoding.
                    let replaced = match String::from_utf8_lossy(json) {
                        Cow::Owned(text) => Self::parse_typed(msg_type, text.as_bytes()).ok(),
                        Cow::Borrowed(_) => None,
                    };
                    replaced.unwrap_or_else(|| {
                        Self::Invalid(InvalidContent {
                            msg_type: msg_type.to_owned(),
                            json: Bytes::copy_from_slice(json),
                            problem: error.to_string(),
                        })
                    })
                })
            }

            fn parse_typed(msg_type: &str, json: &[u8]) -> Result<Self, serde_json::Error> {
                match msg_type {
                    $($msg_type => serde_json::from_slice(json).map(Self::$variant),)+
                    // Checks that the content is JSON.
                    _ => serde_json::from_slice::<serde::de::IgnoredAny>(json).map(|_| {
                        Self::Unknown(UnknownContent {
                            msg_type: msg_type.to_owned(),
                            json: Bytes::copy_from_slice(json),
                        })
                    }),
                }
            }

            /// Returns the message type, such as `execute_request`.
            #[must_use]
            pub fn msg_type(&self) -> &str {
                match self {
                    $(Self::$variant(_) => $msg_type,)+
                    Self::Unknown(unknown) => &unknown.msg_type,
                    Self::Invalid(invalid) => &invalid.msg_type,
                }
            }

            /// Serializes the content to JSON. Unknown and invalid content keeps its original bytes.
            #[must_use]
            pub fn to_json(&self) -> Bytes {
                match self {
                    $(Self::$variant(content) => to_json(content),)+
                    Self::Unknown(unknown) => unknown.json.clone(),
                    Self::Invalid(invalid) => invalid.json.clone(),
                }
            }
        }

        $(
            impl From<$content> for Content {
                fn from(content: $content) -> Self {
                    Self::$variant(content)
                }
            }

            impl TryFrom<Content> for $content {
                type Error = Box<Content>;

                /// Returns content of this type, or the unchanged content as the error.
                fn try_from(content: Content) -> Result<Self, Box<Content>> {
                    match content {
                        Content::$variant(content) => Ok(content),
                        other => Err(Box::new(other)),
                    }
                }
            }
        )+
    };
}

contents! {
    "execute_request" ExecuteRequest(ExecuteRequest),
    "execute_reply" ExecuteReply(Reply<ExecuteReply>),
    "inspect_request" InspectRequest(InspectRequest),
    "inspect_reply" InspectReply(Reply<InspectReply>),
    "complete_request" CompleteRequest(CompleteRequest),
    "complete_reply" CompleteReply(Reply<CompleteReply>),
    "history_request" HistoryRequest(HistoryRequest),
    "history_reply" HistoryReply(Reply<HistoryReply>),
    "is_complete_request" IsCompleteRequest(IsCompleteRequest),
    "is_complete_reply" IsCompleteReply(Reply<IsCompleteReply>),
    "connect_request" ConnectRequest(ConnectRequest),
    "connect_reply" ConnectReply(Reply<ConnectReply>),
    "comm_info_request" CommInfoRequest(CommInfoRequest),
    "comm_info_reply" CommInfoReply(Reply<CommInfoReply>),
    "kernel_info_request" KernelInfoRequest(KernelInfoRequest),
    "kernel_info_reply" KernelInfoReply(Reply<KernelInfoReply>),
    "shutdown_request" ShutdownRequest(ShutdownRequest),
    "shutdown_reply" ShutdownReply(Reply<ShutdownReply>),
    "interrupt_request" InterruptRequest(InterruptRequest),
    "interrupt_reply" InterruptReply(Reply<InterruptReply>),
    "debug_request" DebugRequest(DebugRequest),
    "debug_reply" DebugReply(DebugReply),
    "create_subshell_request" CreateSubshellRequest(CreateSubshellRequest),
    "create_subshell_reply" CreateSubshellReply(Reply<CreateSubshellReply>),
    "delete_subshell_request" DeleteSubshellRequest(DeleteSubshellRequest),
    "delete_subshell_reply" DeleteSubshellReply(Reply<DeleteSubshellReply>),
    "list_subshell_request" ListSubshellRequest(ListSubshellRequest),
    "list_subshell_reply" ListSubshellReply(Reply<ListSubshellReply>),
    "usage_request" UsageRequest(UsageRequest),
    "usage_reply" UsageReply(Reply<UsageReply>),
    "handshake_request" HandshakeRequest(HandshakeRequest),
    "handshake_reply" HandshakeReply(Reply<HandshakeReply>),
    "comm_open" CommOpen(CommOpen),
    "comm_msg" CommMsg(CommMsg),
    "comm_close" CommClose(CommClose),
    "iopub_welcome" IopubWelcome(IopubWelcome),
    "stream" Stream(Stream),
    "display_data" DisplayData(DisplayData),
    "update_display_data" UpdateDisplayData(UpdateDisplayData),
    "execute_input" ExecuteInput(ExecuteInput),
    "execute_result" ExecuteResult(ExecuteResult),
    "error" Error(ErrorOutput),
    "status" Status(Status),
    "clear_output" ClearOutput(ClearOutput),
    "debug_event" DebugEvent(DebugEvent),
    "input_request" InputRequest(InputRequest),
    "input_reply" InputReply(InputReply),
}

impl From<UnknownContent> for Content {
    fn from(unknown: UnknownContent) -> Self {
        Self::Unknown(unknown)
    }
}

fn to_json(content: &impl serde::Serialize) -> Bytes {
    // Serializing fails only for maps with keys that are not strings, which no content has.
    serde_json::to_vec(content).map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from)
}

/// Content of a request, which the receiver answers with a reply.
pub trait Request: Into<Content> {
    /// Content of the reply.
    type Reply: TryFrom<Content, Error = Box<Content>> + Send + 'static;
    /// Channel for the request. Requests that kernels accept on both shell and control use shell.
    const CHANNEL: Channel;
}

macro_rules! requests {
    ($($request:ty => $reply:ty, $channel:ident;)+) => {$(
        impl Request for $request {
            type Reply = $reply;
            const CHANNEL: Channel = Channel::$channel;
        }
    )+};
}

requests! {
    ExecuteRequest => Reply<ExecuteReply>, Shell;
    InspectRequest => Reply<InspectReply>, Shell;
    CompleteRequest => Reply<CompleteReply>, Shell;
    HistoryRequest => Reply<HistoryReply>, Shell;
    IsCompleteRequest => Reply<IsCompleteReply>, Shell;
    ConnectRequest => Reply<ConnectReply>, Shell;
    CommInfoRequest => Reply<CommInfoReply>, Shell;
    KernelInfoRequest => Reply<KernelInfoReply>, Shell;
    ShutdownRequest => Reply<ShutdownReply>, Control;
    InterruptRequest => Reply<InterruptReply>, Control;
    DebugRequest => DebugReply, Control;
    CreateSubshellRequest => Reply<CreateSubshellReply>, Control;
    DeleteSubshellRequest => Reply<DeleteSubshellReply>, Control;
    ListSubshellRequest => Reply<ListSubshellReply>, Control;
    UsageRequest => Reply<UsageReply>, Control;
    InputRequest => InputReply, Stdin;
}
