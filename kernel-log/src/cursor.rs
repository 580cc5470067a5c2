use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
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

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

/// A position in a log: everything up to and including `seq` has been read. Written as `epoch:seq`.
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

/// The text is not a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: a cursor is a log's epoch (32 hex digits), a colon and a number")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, seq) = text.split_once(':').ok_or(NoCursor)?;
        if epoch.len() != 32 || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NoCursor);
        }
        Ok(Self {
            epoch: Epoch(Uuid::try_parse(epoch).map_err(|_| NoCursor)?),
            seq: Seq(seq.parse().map_err(|_| NoCursor)?),
        })
    }
}
