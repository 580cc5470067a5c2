use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Entry, Seq};

/// Consecutive entries in one piece of memory: what was appended together is stored together and read together.
#[derive(Clone, Debug)]
pub struct Block {
    first: Seq,
    last: Seq,
    bytes: Bytes,
}

impl Block {
    /// Entries `first` to `last`, encoded; the caller answers for that.
    pub(super) fn new(first: Seq, last: Seq, bytes: Bytes) -> Self {
        Self { first, last, bytes }
    }

    /// Reads back what a store kept of a block: as many whole entries, in order from the first, as are there.
    /// `None` where there is none.
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

    /// The first entry's number.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The last entry's number.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// When its last entry was appended.
    #[must_use]
    pub fn updated(&self) -> Option<DateTime<Utc>> {
        self.entries().last().map(|entry| entry.time())
    }

    /// The entries as they are stored.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The entries after `seq`; `None` where there are none.
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

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        let mut rest = self.bytes.clone();
        std::iter::from_fn(move || Entry::split_off(&mut rest))
    }
}
