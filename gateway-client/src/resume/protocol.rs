use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jupyter_protocol::codec::{CodecError, websocket_v1};
use jupyter_protocol::{Channel, WireMessage};
use serde::{Deserialize, Serialize};

use kernel_log::{Cursor, Epoch, Seq};

/// The name of the WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "v1.resume.kernelmux";

/// Close code of a connection that a newer connection of the same session replaces.
pub const CLOSE_REPLACED: u16 = 4001;

/// Length of the `seq` in front of an entry's message, in bytes.
const SEQ: usize = 8;

/// Requested start position: the value of the query parameter `resume` of WebSockets and `from` of event streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the earliest kept entry. Written `start`.
    Earliest,
    /// At the next entry that is appended. Written `head`.
    Head,
    /// After this entry. Written `epoch:seq`.
    After(Cursor),
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("start"),
            Self::Head => f.write_str("head"),
            Self::After(cursor) => cursor.fmt(f),
        }
    }
}

/// Error of parsing a text that is not a [`Start`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position in a log: write start, head, or a cursor (a log's epoch in 32 hex digits, a colon, a number)")]
pub struct InvalidStart;

impl FromStr for Start {
    type Err = InvalidStart;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "start" => Ok(Self::Earliest),
            "head" => Ok(Self::Head),
            cursor => cursor.parse().map(Self::After).map_err(|_| InvalidStart),
        }
    }
}

/// A [`Start`] resolved against a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartPoint {
    /// The client receives the entries after this one.
    pub from: Seq,
    /// Why the client does not begin at the requested position; `None` if it begins there.
    pub not_recovered: Option<NotRecovered>,
}

impl Start {
    /// Resolves the position in the log of this `epoch` with the entries `earliest` to `head`. In an empty log,
    /// `earliest` is `head` plus one.
    #[must_use]
    pub fn find(self, epoch: Epoch, earliest: Seq, head: Seq) -> StartPoint {
        let first = Seq(earliest.0.saturating_sub(1));
        let (from, not_recovered) = match self {
            Self::Earliest => (first, None),
            Self::Head => (head, None),
            Self::After(cursor) if cursor.epoch != epoch => (first, Some(NotRecovered::Epoch)),
            Self::After(cursor) if cursor.seq > head => (first, Some(NotRecovered::Ahead)),
            Self::After(cursor) if cursor.seq < first => (first, Some(NotRecovered::Earliest)),
            Self::After(cursor) => (cursor.seq, None),
        };
        StartPoint { from, not_recovered }
    }
}

/// Why a client cannot resume after its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NotRecovered {
    /// The cursor belongs to another log.
    Epoch,
    /// Entries after the cursor were dropped.
    Earliest,
    /// The log ends before the cursor: its end was lost, for example because the machine lost power.
    Ahead,
    /// A reason unknown to this version.
    #[serde(other)]
    Unknown,
}

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The log's identity.
    pub epoch: Epoch,
    /// The earliest kept entry, or `head` plus one if there is none.
    pub earliest: Seq,
    /// The last entry.
    pub head: Seq,
    /// The gateway sends the entries after this one.
    pub from: Seq,
    /// Whether `from` is the requested position.
    pub recovered: bool,
    /// Why `from` is not the requested position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<NotRecovered>,
}

/// The content of a text frame from the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Notice {
    /// The log's bounds and the client's position in it.
    Hello(Hello),
    /// Entries `first` to `last` are missing.
    Gap {
        /// The first missing entry.
        first: Seq,
        /// The last missing entry.
        last: Seq,
    },
    /// The connection is alive, although no entry was sent for a while.
    Alive {},
    /// The kernel has ended, and all of its log was sent.
    End {},
    /// A notice unknown to this version.
    #[serde(other)]
    Unknown,
}

impl Notice {
    /// Returns the text of the frame.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serializing numbers and fixed strings cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Decodes a binary frame from the gateway without copying its contents.
///
/// The gateway sends frames of [`Entry::seq_and_v1`](kernel_log::Entry::seq_and_v1); clients send plain
/// [`websocket_v1`] messages.
///
/// # Errors
/// [`CodecError`] if the frame is not an entry.
pub fn decode_entry(frame: &Bytes) -> Result<(Seq, Channel, WireMessage), CodecError> {
    let Some(seq) = frame.first_chunk::<SEQ>() else {
        // Such a short frame is not a message either, so this returns the codec's error.
        return websocket_v1::decode(frame).map(|(channel, message)| (Seq::START, channel, message));
    };
    let (channel, message) = websocket_v1::decode(&frame.slice(SEQ..))?;
    Ok((Seq(u64::from_le_bytes(*seq)), channel, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_resolves_to_its_position_or_a_reason() {
        let (epoch, other) = (Epoch::random(), Epoch::random());
        let after = |epoch, seq| Start::After(Cursor { epoch, seq: Seq(seq) });
        let find = |start: Start| {
            let found = start.find(epoch, Seq(11), Seq(20));
            (found.from.0, found.not_recovered)
        };
        assert_eq!(find(Start::Earliest), (10, None));
        assert_eq!(find(Start::Head), (20, None));
        assert_eq!(find(after(epoch, 15)), (15, None));
        assert_eq!(find(after(epoch, 10)), (10, None));
        assert_eq!(find(after(epoch, 20)), (20, None));
        assert_eq!(find(after(epoch, 9)), (10, Some(NotRecovered::Earliest)));
        assert_eq!(find(after(epoch, 21)), (10, Some(NotRecovered::Ahead)));
        assert_eq!(find(after(other, 15)), (10, Some(NotRecovered::Epoch)));
    }

    #[test]
    fn notices_serialize_as_documented_and_unknown_ones_parse() {
        let hello = Notice::Hello(Hello {
            epoch: Epoch::random(),
            earliest: Seq(1),
            head: Seq(7),
            from: Seq(3),
            recovered: false,
            reason: Some(NotRecovered::Ahead),
        });
        let json: serde_json::Value = serde_json::from_str(&hello.to_json()).unwrap();
        assert_eq!(json["type"], "hello");
        assert_eq!(json["reason"], "ahead");
        assert_eq!(json["epoch"].as_str().unwrap().len(), 32);
        assert_eq!(serde_json::from_str::<Notice>(&hello.to_json()).unwrap(), hello);
        let gap = r#"{"type":"gap","first":3,"last":4}"#;
        assert_eq!(serde_json::from_str::<Notice>(gap).unwrap().to_json(), gap);
        assert_eq!(Notice::End {}.to_json(), r#"{"type":"end"}"#);
        let unknown = r#"{"type":"later","x":1}"#;
        assert_eq!(serde_json::from_str::<Notice>(unknown).unwrap(), Notice::Unknown);
    }

    #[test]
    fn a_start_parses_from_its_own_text_and_from_no_other() {
        for text in ["start", "head", "9f86d081884c7d659a2feaa0c55ad015:4711"] {
            assert_eq!(text.parse::<Start>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "START",
            "4711",
            "x:1",
            "9f86d081884c7d659a2feaa0c55ad015:",
            "9f86d081884c7d659a2feaa0c55ad015:-1",
        ] {
            assert_eq!(text.parse::<Start>(), Err(InvalidStart), "{text:?}");
        }
    }
}
