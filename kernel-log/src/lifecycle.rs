use std::fmt;

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, WireMessage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Seq;

/// The `msg_type` of life-cycle entries that plain Jupyter clients do not receive.
pub const LIFECYCLE: &str = "kernelmux_lifecycle";

/// An event in a kernel's life. It is recorded as an entry of the kernel's log, with the origin
/// [`Lifecycle`](crate::Origin::Lifecycle).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lifecycle {
    /// The kernel answered for the first time.
    Started,
    /// A gateway attached to the running kernel. The kernel's output since the previous entry was not recorded.
    Attached {
        /// Length of the gap in milliseconds, if its start is known.
        unrecorded_ms: Option<i64>,
    },
    /// These executions ended while the connection was lost, so their outcome was not recorded. For each of them, a
    /// notice on stderr, a reply and an idle status follow, as far as they are not in the log already.
    Lost {
        /// The `msg_id`s of their requests.
        executions: Vec<String>,
    },
    /// These executions ended with the kernel's process. For each of them, an error, a reply and an idle status follow,
    /// as far as the kernel's own were not recorded. An execution that had not started gets no error.
    Died {
        /// The `msg_id`s of their requests.
        executions: Vec<String>,
        /// The cause.
        reason: String,
    },
    /// Output may be missing between the previous message of the kernel and the next one, for example because the iopub
    /// connection was lost or an agent had no room for entries. If the kernel has ended, a later entry reports that.
    Disconnected,
    /// The store refused these entries, and none of them can be read later.
    NotRecorded {
        /// The first refused entry.
        first: Seq,
        /// The last refused entry.
        last: Seq,
        /// The store's error.
        reason: String,
    },
    /// The kernel is running and has published nothing for a long time. Because of this recent entry, other gateways
    /// that share the store keep the log.
    Quiet,
    /// The kernel will be culled. Plain Jupyter clients receive this event too.
    Culling {
        /// In how many seconds, at the earliest.
        seconds: u64,
        /// The cause, such as "idle for 3600 s".
        reason: String,
        /// Whether it is culled because it is idle, so that using it keeps it.
        idle: bool,
    },
    /// A restart was requested.
    Restarting,
    /// The kernel answered for the first time after a restart.
    Restarted,
    /// The kernel ended by itself and is being restarted.
    #[serde(skip)]
    RestartingByItself {
        /// The cause.
        reason: String,
        /// The end of its output outside the protocol; may be empty.
        output: String,
    },
    /// The kernel is idle for the first time since the gateway connected. JupyterLab ignores the kernel's own idle
    /// status, because it answers a `kernel_info_request`. Without this event, JupyterLab would show a starting kernel
    /// until the next cell runs.
    #[serde(skip)]
    Idle {
        /// The kernel's session, from which the event is sent: JupyterLab drops queued messages when a message from
        /// another session arrives.
        session: String,
    },
    /// The kernel is dead.
    #[serde(skip)]
    Dead {
        /// The cause.
        reason: String,
        /// The end of its output outside the protocol; may be empty.
        output: String,
    },
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("the kernel started"),
            Self::Attached { unrecorded_ms: None } => f.write_str("the kernel was not recorded for an unknown time"),
            Self::Attached {
                unrecorded_ms: Some(ms),
            } => write!(f, "the kernel was not recorded for {ms} ms"),
            Self::Lost { executions } => {
                write!(f, "{} executions ended while they were not recorded", executions.len())
            }
            Self::Died { executions, reason } => {
                write!(f, "{} executions ended with the kernel: {reason}", executions.len())
            }
            Self::Disconnected => f.write_str("the connection to the kernel was lost"),
            Self::NotRecorded { first, last, reason } => {
                write!(f, "entries {first} to {last} could not be stored: {reason}")
            }
            Self::Quiet => f.write_str("the kernel has published nothing for a long time"),
            Self::Culling { seconds, reason, .. } => write!(f, "the kernel will be culled in {seconds} s: {reason}"),
            Self::Restarting => f.write_str("a restart was requested"),
            Self::Restarted => f.write_str("the kernel was restarted"),
            Self::RestartingByItself { reason, .. } => write!(f, "the kernel ended and is being restarted: {reason}"),
            Self::Idle { .. } => f.write_str("the kernel is idle"),
            Self::Dead { reason, .. } => write!(f, "the kernel is dead: {reason}"),
        }
    }
}

impl Lifecycle {
    /// The message of the event for the log, sent by `session`. For events that plain Jupyter clients know, it is a
    /// `status` as jupyter_server sends it: on iopub, without a parent.
    ///
    /// Only [`Idle`](Self::Idle) is sent by the kernel's session and has a parent, a made-up request of `session`,
    /// because clients expect every idle status to end a request.
    #[must_use]
    pub fn to_message(&self, session: &str) -> WireMessage {
        let status = |session: &str, content: Value| {
            Message::new(Content::parse("status", content.to_string().as_bytes()), session)
        };
        let ended = |state: &str, reason: &str, output: &str| {
            status(
                session,
                json!({"execution_state": state, "reason": reason, "output": output}),
            )
        };
        match self {
            Self::RestartingByItself { reason, output } => ended("restarting", reason, output),
            Self::Dead { reason, output } => ended("dead", reason, output),
            Self::Idle { session: kernel } => {
                status(kernel, json!({"execution_state": "idle"})).with_parent(Header::new(LIFECYCLE, session))
            }
            // Serializing numbers and strings cannot fail.
            other => {
                let content = serde_json::to_vec(other).unwrap_or_default();
                Message::new(Content::parse(LIFECYCLE, &content), session)
            }
        }
        .to_wire()
    }

    /// The event of a life-cycle entry. `None` for any other message, and for events of a newer version.
    ///
    /// Call this only for entries whose [origin](crate::Origin) is `Lifecycle`: a kernel may send the same `status`.
    #[must_use]
    pub fn from_message(message: &WireMessage) -> Option<Self> {
        #[derive(Deserialize)]
        struct Status {
            execution_state: String,
            #[serde(default)]
            reason: String,
            #[serde(default)]
            output: String,
        }
        let header = message.header_ref().ok()?;
        match &*header.msg_type {
            LIFECYCLE => serde_json::from_slice(message.content()).ok(),
            "status" => {
                let status: Status = serde_json::from_slice(message.content()).ok()?;
                let (reason, output) = (status.reason, status.output);
                match &*status.execution_state {
                    "restarting" => Some(Self::RestartingByItself { reason, output }),
                    "dead" => Some(Self::Dead { reason, output }),
                    // The gateway's other idle statuses end executions whose kernel has ended.
                    "idle" if message.parent_ref().is_ok_and(|parent| parent.msg_type == LIFECYCLE) => {
                        Some(Self::Idle {
                            session: header.session.to_string(),
                        })
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether messages of the kernel may be missing from the log here.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Attached { .. } | Self::Disconnected | Self::NotRecorded { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_read_back_from_its_message() {
        let text = str::to_owned;
        let executions = || vec![text("a"), text("b")];
        for event in [
            Lifecycle::Started,
            Lifecycle::Attached { unrecorded_ms: None },
            Lifecycle::Attached { unrecorded_ms: Some(7) },
            Lifecycle::Lost {
                executions: executions(),
            },
            Lifecycle::Died {
                executions: executions(),
                reason: text("killed"),
            },
            Lifecycle::Disconnected,
            Lifecycle::NotRecorded {
                first: Seq(3),
                last: Seq(9),
                reason: text("no space"),
            },
            Lifecycle::Quiet,
            Lifecycle::Restarting,
            Lifecycle::Restarted,
            Lifecycle::RestartingByItself {
                reason: text("killed"),
                output: String::new(),
            },
            Lifecycle::Idle {
                session: text("kernel"),
            },
            Lifecycle::Dead {
                reason: text("out of memory"),
                output: text("Killed"),
            },
        ] {
            let message = event.to_message("gateway");
            assert_eq!(Lifecycle::from_message(&message), Some(event));
        }
    }

    #[test]
    fn an_event_of_a_newer_version_is_none() {
        let content = br#"{"event":"moved","to":"another machine"}"#;
        let message = Message::new(Content::parse(LIFECYCLE, content), "gateway").to_wire();
        assert_eq!(Lifecycle::from_message(&message), None);
    }
}
