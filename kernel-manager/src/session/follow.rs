//! Sessions that follow executions of other sessions.
//!
//! A reopened page has a new session, but the kernel's replies and questions are addressed to the old one. The page
//! sends the `execute_request` again, with the same `msg_id` and with `metadata.kernelmux.follow`. Such a request is
//! never sent to the kernel. Instead, the execution is replayed to the new session, and the execution's later replies
//! and questions are also delivered to this session.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, Header, WireMessage};
use memchr::memmem;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The most followers of an execution that survive a reconnect. Beyond that, the oldest is forgotten.
pub(super) const MAX_FOLLOWERS: usize = 32;
/// The most executions that a session follows. Beyond that, the session gets no more replies of the oldest.
const MAX_FOLLOWED: usize = 4_096;

/// Whether this is a request to follow an execution that another session requested: an `execute_request` with
/// `"kernelmux": {"follow": true}` in its metadata. Pass it to [`Attachment::follow`](crate::Attachment::follow).
/// [`Client::send`](crate::Client::send) drops it.
#[must_use]
pub fn is_follow_request(message: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct Metadata {
        kernelmux: Own,
    }
    #[derive(Deserialize)]
    struct Own {
        follow: bool,
    }
    memmem::find(message.metadata(), b"\"kernelmux\"").is_some()
        && message
            .header_ref()
            .is_ok_and(|header| header.msg_type == "execute_request")
        && serde_json::from_slice::<Metadata>(message.metadata()).is_ok_and(|metadata| metadata.kernelmux.follow)
}

/// Whether a request to follow an execution also requests the kernel's widgets.
pub(crate) fn wants_comms(request: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct Metadata {
        kernelmux: Own,
    }
    #[derive(Deserialize)]
    struct Own {
        #[serde(default)]
        comms: bool,
    }
    serde_json::from_slice::<Metadata>(request.metadata()).is_ok_and(|metadata| metadata.kernelmux.comms)
}

/// Metadata of the messages that a replay creates.
pub(super) fn replay_metadata() -> Map<String, Value> {
    Map::from_iter([("kernelmux".to_owned(), json!({"replay": true}))])
}

/// The answer to a request to follow an execution that cannot be shown: an error reply, and an idle status.
pub(crate) fn refusal(request: &WireMessage, ename: &str, evalue: &str, session: &str) -> Vec<(Channel, WireMessage)> {
    let parent = Header::parse(request.header()).unwrap_or_default();
    let message = |msg_type: &str, content: Value| {
        let message = Message::new(Content::parse(msg_type, content.to_string().as_bytes()), session);
        let message = message.with_parent(parent.clone());
        message.with_metadata(replay_metadata()).to_wire()
    };
    let error = json!({
        "status": "error", "ename": ename, "evalue": evalue, "traceback": [], "execution_count": null,
    });
    vec![
        (Channel::Shell, message("execute_reply", error)),
        (Channel::Iopub, message("status", json!({"execution_state": "idle"}))),
    ]
}

/// The executions of other sessions that a session follows, shared by its attachments.
#[derive(Default)]
pub(crate) struct Followed {
    /// Whether there are any, readable without the lock.
    any: AtomicBool,
    msg_ids: Mutex<MsgIds>,
}

#[derive(Default)]
struct MsgIds {
    known: HashSet<Arc<str>>,
    in_order: VecDeque<Arc<str>>,
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, MsgIds> {
        self.msg_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, msg_id: &str) {
        let mut msg_ids = self.lock();
        let msg_id: Arc<str> = msg_id.into();
        if msg_ids.known.insert(msg_id.clone()) {
            msg_ids.in_order.push_back(msg_id);
        }
        if msg_ids.in_order.len() > MAX_FOLLOWED
            && let Some(oldest) = msg_ids.in_order.pop_front()
        {
            msg_ids.known.remove(&oldest);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Whether the message belongs to one of these executions.
    pub(crate) fn has(&self, message: &WireMessage) -> bool {
        self.any.load(Ordering::Acquire)
            && message
                .parent_ref()
                .is_ok_and(|parent| self.lock().known.contains(&*parent.msg_id))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn request(msg_type: &str, metadata: &str) -> WireMessage {
        let header = json!({"msg_id": "1", "msg_type": msg_type}).to_string();
        let parts = [header, "{}".to_owned(), metadata.to_owned(), "{}".to_owned()];
        WireMessage::from_parts(parts.map(Bytes::from), [])
    }

    #[test]
    fn only_an_execute_request_with_the_member_is_a_follow_request() {
        let follow = r#"{"cellId": "a", "kernelmux": {"follow": true}}"#;
        assert!(is_follow_request(&request("execute_request", follow)));
        assert!(!is_follow_request(&request("comm_msg", follow)));
        for metadata in [
            "{}",
            r#"{"kernelmux": {"follow": false}}"#,
            r#"{"kernelmux": {}}"#,
            r#"{"kernelmux": true}"#,
            r#"{"follow": true}"#,
            r#"{"kernelmux": {"follow": true}"#,
        ] {
            assert!(!is_follow_request(&request("execute_request", metadata)), "{metadata}");
        }
    }

    #[test]
    fn the_oldest_execution_that_a_session_follows_is_forgotten() {
        let followed = Followed::default();
        for number in 0..=MAX_FOLLOWED {
            followed.insert(&number.to_string());
            followed.insert(&number.to_string());
        }
        let has = |number: usize| {
            let parent = Bytes::from(json!({"msg_id": number.to_string()}).to_string());
            let empty = || Bytes::from_static(b"{}");
            followed.has(&WireMessage::from_parts([empty(), parent, empty(), empty()], []))
        };
        assert!(!has(0));
        assert!(has(1) && has(MAX_FOLLOWED));
    }
}
