use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Entry, Seq};

/// Consecutive entries in one buffer. A block is stored and read as a whole.
#[derive(Clone, Debug)]
pub struct Block {
    first: Seq,
    last: Seq,
    bytes: Bytes,
}

impl Block {
    /// A block of encoded entries `first` to `last`. The caller guarantees the contents.
    pub(super) fn new(first: Seq, last: Seq, bytes: Bytes) -> Self {
        Self { first, last, bytes }
    }

    /// Decodes a stored block up to the first entry that is incomplete or out of order. `None` if there is no whole
    /// entry.
    #[must_use]
    pub fn recover(bytes: Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        let mut first = None;
        let mut last = Seq::START;
        let mut whole = 0;
        while let Some(entry) = Entry::split_off(&mut rest) {
            if first.is_some() && entry.seq() != last.next() {
                break;
            }
            last = entry.seq();
            first.get_or_insert(last);
            whole += entry.size();
        }
        Some(Self {
            first: first?,
            last,
            bytes: bytes.slice(..whole),
        })
    }

    /// Number of the first entry.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// Number of the last entry.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// When the last entry was appended.
    #[must_use]
    pub fn updated(&self) -> Option<DateTime<Utc>> {
        self.entries().last().map(|entry| entry.time())
    }

    /// The encoded entries.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The entries after `seq`; `None` if there are none.
    #[must_use]
    pub fn after(&self, seq: Seq) -> Option<Self> {
        if self.last <= seq {
            return None;
        }
        let mut rest = self.bytes.clone();
        let mut first = self.first;
        while first <= seq {
            Entry::split_off(&mut rest)?;
            first = first.next();
        }
        Some(Self::new(first, self.last, rest))
    }

    /// Iterates over the entries.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        let mut rest = self.bytes.clone();
        std::iter::from_fn(move || Entry::split_off(&mut rest))
    }
}
