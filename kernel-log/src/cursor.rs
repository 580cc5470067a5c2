use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The number of an entry in its log, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(
    /// The number; 0 is the position before the first entry.
    pub u64,
);

impl Seq {
    /// The position before the first entry.
    pub const START: Self = Self(0);

    /// The number of the next entry.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a log. It is random and changes when a log is recreated, so that a [`Seq`] is not applied to another
/// log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(#[serde(with = "uuid::serde::simple")] Uuid);

impl Epoch {
    /// A new random epoch.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

#[cfg(feature = "disk")]
impl Epoch {
    pub(crate) fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for Epoch {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 {
            return Err(InvalidCursor);
        }
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidCursor)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

/// A position in a log: everything up to and including `seq` has been read. Written as `epoch:seq`, also by serde.
///
/// ```
/// use kernel_log::{Cursor, Epoch, Seq};
///
/// let cursor = Cursor { epoch: Epoch::random(), seq: Seq(17) };
/// assert_eq!(cursor.to_string().parse(), Ok(cursor));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The log.
    pub epoch: Epoch,
    /// The last entry that was read; [`Seq::START`] for none.
    pub seq: Seq,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

/// The text is not a cursor, or not an epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: a cursor is a log's epoch (32 hex digits), a colon and a number")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, seq) = text.split_once(':').ok_or(InvalidCursor)?;
        if !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidCursor);
        }
        Ok(Self {
            epoch: epoch.parse()?,
            seq: Seq(seq.parse().map_err(|_| InvalidCursor)?),
        })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_and_epochs_are_read_back_from_text_and_json() {
        let cursor = Cursor {
            epoch: Epoch::random(),
            seq: Seq(7),
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_eq!(cursor.epoch.to_string().parse(), Ok(cursor.epoch));
        let json = serde_json::to_string(&cursor).unwrap_or_default();
        assert_eq!(json, format!("\"{cursor}\""));
        assert_eq!(serde_json::from_str::<Cursor>(&json).ok(), Some(cursor));
        for invalid in ["\"\"", "\"7\"", "7", "\"0123456789abcdef0123456789abcdef:-1\""] {
            assert!(serde_json::from_str::<Cursor>(invalid).is_err(), "{invalid}");
        }
    }
}
