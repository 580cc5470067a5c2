use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};

use super::{Entry, Seq};

/// Consecutive entries in encoded form, which are stored and read as a whole.
#[derive(Clone, Debug)]
pub struct Block {
    first: Seq,
    last: Seq,
    first_time: DateTime<Utc>,
    last_time: DateTime<Utc>,
    data: Data,
}

/// The encoded entries of a block.
#[derive(Clone, Debug)]
enum Data {
    Whole(Bytes),
    /// A large message, whose pieces are not copied into one buffer unless [`Block::bytes`] is called.
    InPieces(Arc<Pieces>),
}

#[derive(Debug)]
struct Pieces {
    pieces: Vec<Bytes>,
    length: usize,
    joined: OnceLock<Bytes>,
}

impl Block {
    /// A block of the entries `first` to `last`, appended between these times. `bytes` must contain exactly these
    /// entries.
    pub(super) fn new(
        (first, last): (Seq, Seq),
        (first_time, last_time): (DateTime<Utc>, DateTime<Utc>),
        bytes: Bytes,
    ) -> Self {
        Self {
            first,
            last,
            first_time,
            last_time,
            data: Data::Whole(bytes),
        }
    }

    /// A block of one entry, which is encoded in these pieces.
    pub(super) fn in_pieces(seq: Seq, time: DateTime<Utc>, pieces: Vec<Bytes>) -> Self {
        let pieces = Pieces {
            length: pieces.iter().map(Bytes::len).sum(),
            pieces,
            joined: OnceLock::new(),
        };
        Self {
            first: seq,
            last: seq,
            first_time: time,
            last_time: time,
            data: Data::InPieces(Arc::new(pieces)),
        }
    }

    /// Decodes a stored block up to the first entry that is incomplete, invalid or out of order. `None` if that is the
    /// first one.
    #[must_use]
    pub fn recover(bytes: Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        let mut first = None;
        let mut last = (Seq::START, DateTime::UNIX_EPOCH);
        let mut whole = 0;
        while let Some(entry) = Entry::split_off(&mut rest) {
            if first.is_some() && entry.seq() != last.0.next() {
                break;
            }
            last = (entry.seq(), entry.time());
            first.get_or_insert(last);
            whole += entry.size();
        }
        let first = first?;
        Some(Self::new((first.0, last.0), (first.1, last.1), bytes.slice(..whole)))
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

    /// When the first entry was appended.
    #[must_use]
    pub fn begun(&self) -> DateTime<Utc> {
        self.first_time
    }

    /// When the last entry was appended.
    #[must_use]
    pub fn updated(&self) -> DateTime<Utc> {
        self.last_time
    }

    /// Size of the encoded entries in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.data {
            Data::Whole(bytes) => bytes.len(),
            Data::InPieces(pieces) => pieces.length,
        }
    }

    /// The encoded entries in one buffer. For a block in several pieces, the first call copies them;
    /// [`pieces`](Self::pieces) never copies.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match &self.data {
            Data::Whole(bytes) => bytes,
            Data::InPieces(pieces) => pieces.joined.get_or_init(|| {
                let mut joined = BytesMut::with_capacity(pieces.length);
                for piece in &pieces.pieces {
                    joined.extend_from_slice(piece);
                }
                joined.freeze()
            }),
        }
    }

    /// The same block in one buffer, which does not keep the original pieces in memory.
    pub(super) fn joined(&self) -> Self {
        Self {
            data: Data::Whole(self.bytes().clone()),
            ..*self
        }
    }

    /// The encoded entries in one or several pieces.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        match &self.data {
            Data::Whole(bytes) => std::slice::from_ref(bytes),
            Data::InPieces(pieces) => &pieces.pieces,
        }
    }

    /// The entries after `seq`; `None` if there are none.
    #[must_use]
    pub fn after(&self, seq: Seq) -> Option<Self> {
        if self.last <= seq {
            return None;
        }
        let mut rest = self.bytes().clone();
        let mut first = self.first;
        while first <= seq {
            Entry::split_off(&mut rest)?;
            first = first.next();
        }
        let first_time = Entry::split_off(&mut rest.clone()).map_or(self.first_time, |entry| entry.time());
        Some(Self::new((first, self.last), (first_time, self.last_time), rest))
    }

    /// Iterates over the entries.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        let mut rest = self.bytes().clone();
        std::iter::from_fn(move || Entry::split_off(&mut rest))
    }
}
