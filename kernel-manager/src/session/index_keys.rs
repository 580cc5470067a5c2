//! The keys of a log's index.
//!
//! | Key | Record |
//! |---|---|
//! | `r/` `msg_id` of a client's message | its entry's number |
//! | `e/` number of an `execute_request` | its [`ExecutionRecord`](super::ExecutionRecord) as JSON |
//! | `q/` number of another client message | its `msg_id` |
//! | `u/` number of an unfinished `execute_request` | empty |
//! | `d/` `display_id` | the number of its newest `update_display_data` |
//! | `s/` session | its position and recent replays, as JSON |
//! | `c/` id of an open comm | the number of its `comm_open` |
//! | `k/comms` | exists if the index lacks open comms of the kernel |
//! | `k/info` | the content of the newest `kernel_info_reply` |
//! | `k/agent` | the position up to which this log has the entries of the agent's log, as JSON |
//!
//! Numbers are 8 bytes, big-endian, so that they sort.

use bytes::Bytes;

use kernel_log::Seq;

/// The longest indexed id of a message, display, comm or cell, in bytes. Real ones are far shorter.
pub(super) const MAX_ID: usize = 1_024;

pub(super) type Range = (&'static [u8], &'static [u8]);

pub(super) const EXECUTIONS: Range = (b"e/", b"e0");
pub(super) const OTHER_REQUESTS: Range = (b"q/", b"q0");
pub(super) const RUNNING: Range = (b"u/", b"u0");
pub(super) const DISPLAYS: Range = (b"d/", b"d0");
pub(super) const SESSIONS: Range = (b"s/", b"s0");
pub(super) const COMMS: Range = (b"c/", b"c0");
pub(super) const COMMS_INCOMPLETE: Bytes = Bytes::from_static(b"k/comms");
pub(super) const KERNEL_INFO: Bytes = Bytes::from_static(b"k/info");
pub(super) const AGENT: Bytes = Bytes::from_static(b"k/agent");

pub(super) fn request(msg_id: &str) -> Bytes {
    text(b"r/", msg_id)
}

pub(super) fn execution(seq: Seq) -> Bytes {
    numbered(b"e/", seq)
}

pub(super) fn other_request(seq: Seq) -> Bytes {
    numbered(b"q/", seq)
}

pub(super) fn running(seq: Seq) -> Bytes {
    numbered(b"u/", seq)
}

pub(super) fn display(display_id: &str) -> Bytes {
    text(b"d/", display_id)
}

pub(super) fn comm(comm_id: &str) -> Bytes {
    text(b"c/", comm_id)
}

pub(super) fn session(session: &str) -> Bytes {
    text(b"s/", session)
}

/// A number as a record or as part of a key.
pub(super) fn number(seq: Seq) -> Bytes {
    Bytes::copy_from_slice(&seq.0.to_be_bytes())
}

/// The number in a record, or in a key after its prefix.
pub(super) fn seq_of(bytes: &[u8]) -> Option<Seq> {
    let digits = bytes.last_chunk::<8>()?;
    Some(Seq(u64::from_be_bytes(*digits)))
}

/// The part of a key after its prefix.
pub(super) fn text_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(2..)?).ok()
}

fn text(prefix: &[u8; 2], text: &str) -> Bytes {
    [prefix, text.as_bytes()].concat().into()
}

fn numbered(prefix: &[u8; 2], seq: Seq) -> Bytes {
    [prefix, &seq.0.to_be_bytes()[..]].concat().into()
}
