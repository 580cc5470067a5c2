use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jupyter_protocol::codec::{CodecError, websocket_v1};
use jupyter_protocol::{Channel, WireMessage};
use serde::{Deserialize, Serialize};

use kernel_log::{Cursor, Epoch, Seq};

/// The name of the WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "v1.resume.kernelmux";

/// The code with which a connection is closed whose session has connected anew.
pub const CLOSE_REPLACED: u16 = 4001;

const SEQ: usize = 8;

/// Where a client wants to begin: the value of `resume=` and of `from=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the earliest entry that is kept. Written `start`.
    Earliest,
    /// With the next entry that is appended. Written `head`.
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

/// A text that says no place in a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in a log: write start, head, or a cursor (a log's epoch in 32 hex digits, a colon, a number)")]
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

/// Where a client begins, given the log as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartPoint {
    /// The next entry is the one after this.
    pub from: Seq,
    /// Why that is not where the client wanted to begin; `None` where it is.
    pub not_recovered: Option<NotRecovered>,
}

impl Start {
    /// Finds the place in a log of this `epoch` that has the entries `earliest` to `head`; `earliest` is one more than
    /// `head` where it has none.
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

/// Why a client does not go on after its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NotRecovered {
    /// The cursor is of another log.
    Epoch,
    /// Entries after the cursor were dropped.
    Earliest,
    /// The log ends before the cursor: its end was lost, as when the machine lost power.
    Ahead,
    /// A reason that is not known here.
    #[serde(other)]
    Unknown,
}

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The log's identity.
    pub epoch: Epoch,
    /// The first entry that is kept; one more than `head` where there is none.
    pub earliest: Seq,
    /// The last entry.
    pub head: Seq,
    /// The next entry that is sent is the one after this.
    pub from: Seq,
    /// Whether that is where the client wanted to begin.
    pub recovered: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<NotRecovered>,
}

/// What the gateway says in text frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Notice {
    /// Where the client stands.
    Hello(Hello),
    /// Entries `first` to `last` are not there.
    Gap {
        /// The first one missing.
        first: Seq,
        /// The last one missing.
        last: Seq,
    },
    /// Nothing else was sent for a while.
    Alive {},
    /// The kernel is gone, and all of its log was sent.
    End {},
    /// One that is not known here.
    #[serde(other)]
    Unknown,
}

impl Notice {
    /// The text of the frame.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers and plain words: nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Takes a binary frame of the gateway apart, sharing its memory. Frames that a client sends are
/// [`websocket_v1`] messages; frames that the gateway sends are
/// [`Entry::seq_and_v1`](kernel_log::Entry::seq_and_v1).
///
/// # Errors
/// [`CodecError`] where the frame is no entry.
pub fn decode_entry(frame: &Bytes) -> Result<(Seq, Channel, WireMessage), CodecError> {
    let Some(seq) = frame.first_chunk::<SEQ>() else {
        return websocket_v1::decode(frame).map(|(channel, message)| (Seq::START, channel, message));
    };
    let (channel, message) = websocket_v1::decode(&frame.slice(SEQ..))?;
    Ok((Seq(u64::from_le_bytes(*seq)), channel, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_log_is_found_or_the_reason_is_told() {
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
    fn notices_are_written_as_documented_and_unknown_ones_are_taken() {
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
    fn starts_are_written_as_they_are_read() {
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
