//! The frames of a segment file.
//!
//! ```text
//! u64 checksum of the rest of the head | u32 kind | u32 length of the body | u32 length of the index updates
//! | u32 checksum of the body | u32 checksum of the index updates | u32 0
//! | u64 first | u64 last | i64 first time | i64 last time | u64 bytes before | index updates | body
//! ```
//!
//! Numbers are little-endian, times in microseconds. Checksums are XXH3, seeded with the salt of the segment, so that a
//! kernel cannot print bytes that would be taken for a frame if the frame before them is damaged.

use std::io::IoSlice;
use std::slice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::records;
use crate::{Block, IndexUpdate, Seq};

/// Size of a frame's head in bytes.
pub(super) const HEAD: usize = 72;

/// What a frame contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A block of entries, index updates, or both.
    Entries,
    /// Retention dropped the entries before `first`, which had `bytes_before` bytes.
    Kept,
    /// The store refused entries, whose numbers must not be reused. `last` is at least the last of them: further
    /// numbers are marked in advance, and are free again once a block is stored.
    Skipped,
    /// The [totals](Totals) and the offsets of the segment so far. `first` is 1 if the log was closed with it.
    Summary,
    /// The log is written again after it was closed.
    Reopened,
}

impl Kind {
    const fn to_number(self) -> u32 {
        match self {
            Self::Entries => 1,
            Self::Kept => 2,
            Self::Skipped => 3,
            Self::Summary => 4,
            Self::Reopened => 5,
        }
    }

    const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Entries),
            2 => Some(Self::Kept),
            3 => Some(Self::Skipped),
            4 => Some(Self::Summary),
            5 => Some(Self::Reopened),
            _ => None,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) body_length: u32,
    pub(super) index_length: u32,
    body_check: u32,
    index_check: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) first_time: i64,
    pub(super) last_time: i64,
    /// For [`Kind::Entries`], bytes of all earlier blocks of the log; for [`Kind::Kept`], of the dropped ones; else 0.
    pub(super) bytes_before: u64,
}

fn check32(pieces: &[Bytes], salt: u64) -> u32 {
    match pieces {
        [bytes] => xxh3_64_with_seed(bytes, salt) as u32,
        pieces => {
            let mut hash = Xxh3::with_seed(salt);
            pieces.iter().for_each(|piece| hash.update(piece));
            hash.digest() as u32
        }
    }
}

impl Head {
    fn empty(kind: Kind) -> Self {
        Self {
            kind,
            body_length: 0,
            index_length: 0,
            body_check: 0,
            index_check: 0,
            first: 0,
            last: 0,
            first_time: 0,
            last_time: 0,
            bytes_before: 0,
        }
    }

    /// Parses and verifies the head at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8], salt: u64) -> Option<Self> {
        let mut head = bytes.first_chunk::<HEAD>()?.as_slice();
        let check = head.get_u64_le();
        let rest = head;
        let kind = Kind::from_number(head.get_u32_le())?;
        if xxh3_64_with_seed(rest, salt) != check {
            return None;
        }
        let (body_length, index_length) = (head.get_u32_le(), head.get_u32_le());
        let (body_check, index_check) = (head.get_u32_le(), head.get_u32_le());
        head.advance(4);
        Some(Self {
            kind,
            body_length,
            index_length,
            body_check,
            index_check,
            first: head.get_u64_le(),
            last: head.get_u64_le(),
            first_time: head.get_i64_le(),
            last_time: head.get_i64_le(),
            bytes_before: head.get_u64_le(),
        })
    }

    fn encode(&self, salt: u64) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let mut out = &mut bytes[8..];
        out.put_u32_le(self.kind.to_number());
        out.put_u32_le(self.body_length);
        out.put_u32_le(self.index_length);
        out.put_u32_le(self.body_check);
        out.put_u32_le(self.index_check);
        out.put_u32_le(0);
        out.put_u64_le(self.first);
        out.put_u64_le(self.last);
        out.put_i64_le(self.first_time);
        out.put_i64_le(self.last_time);
        out.put_u64_le(self.bytes_before);
        let check = xxh3_64_with_seed(&bytes[8..], salt);
        bytes[..8].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Length of the whole frame in bytes.
    pub(super) fn frame_length(&self) -> u64 {
        HEAD as u64 + u64::from(self.index_length) + u64::from(self.body_length)
    }

    /// Whether these are the frame's index updates.
    pub(super) fn is_index(&self, bytes: &[u8], salt: u64) -> bool {
        xxh3_64_with_seed(bytes, salt) as u32 == self.index_check
    }

    /// Whether this is the frame's body.
    pub(super) fn is_body(&self, bytes: &[u8], salt: u64) -> bool {
        xxh3_64_with_seed(bytes, salt) as u32 == self.body_check
    }

    /// Whether the log was closed with this frame.
    pub(super) fn is_closing(&self) -> bool {
        self.kind == Kind::Summary && self.first == 1
    }

    /// Whether the frame contains entries.
    pub(super) fn has_block(&self) -> bool {
        self.kind == Kind::Entries && self.body_length > 0
    }
}

/// A frame to write.
pub(super) struct Frame {
    pub(super) head: Head,
    head_bytes: [u8; HEAD],
    index: Bytes,
    body: Vec<Bytes>,
}

impl Frame {
    fn new(mut head: Head, index: Bytes, body: &[Bytes], salt: u64) -> Self {
        let body_length: usize = body.iter().map(Bytes::len).sum();
        // Blocks and updates are limited to far less than 4 GiB.
        head.index_length = u32::try_from(index.len()).unwrap_or(u32::MAX);
        head.body_length = u32::try_from(body_length).unwrap_or(u32::MAX);
        head.index_check = check32(slice::from_ref(&index), salt);
        head.body_check = check32(body, salt);
        let head_bytes = head.encode(salt);
        Self {
            head,
            head_bytes,
            index,
            body: body.to_vec(),
        }
    }

    /// A block, if there is one, and index updates.
    pub(super) fn entries(block: Option<&Block>, updates: &[IndexUpdate], bytes_before: u64, salt: u64) -> Self {
        let mut index = BytesMut::new();
        for update in updates {
            records::encode(&mut index, &update.key, update.value.as_deref());
        }
        let mut head = Head::empty(Kind::Entries);
        head.bytes_before = bytes_before;
        if let Some(block) = block {
            head.first = block.first().0;
            head.last = block.last().0;
            head.first_time = block.begun().timestamp_micros();
            head.last_time = block.updated().timestamp_micros();
        }
        Self::new(head, index.freeze(), block.map_or(&[], Block::pieces), salt)
    }

    /// See [`Kind::Kept`].
    pub(super) fn kept(first: Seq, bytes_before: u64, salt: u64) -> Self {
        let mut head = Head::empty(Kind::Kept);
        head.first = first.0;
        head.bytes_before = bytes_before;
        Self::new(head, Bytes::new(), &[], salt)
    }

    /// See [`Kind::Skipped`].
    pub(super) fn skipped(last: u64, salt: u64) -> Self {
        let mut head = Head::empty(Kind::Skipped);
        head.last = last;
        Self::new(head, Bytes::new(), &[], salt)
    }

    /// See [`Kind::Summary`].
    pub(super) fn summary(body: Bytes, is_closing: bool, salt: u64) -> Self {
        let mut head = Head::empty(Kind::Summary);
        head.first = u64::from(is_closing);
        Self::new(head, Bytes::new(), &[body], salt)
    }

    /// See [`Kind::Reopened`].
    pub(super) fn reopened(salt: u64) -> Self {
        Self::new(Head::empty(Kind::Reopened), Bytes::new(), &[], salt)
    }

    /// The frame's bytes, in order.
    pub(super) fn parts(&self) -> Vec<IoSlice<'_>> {
        let mut parts = vec![IoSlice::new(&self.head_bytes), IoSlice::new(&self.index)];
        parts.extend(self.body.iter().map(|piece| IoSlice::new(piece)));
        parts
    }
}

/// Totals of a log after a number of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The first entry that retention keeps; 0 if it dropped none.
    pub(super) kept_first: u64,
    /// Bytes of the blocks before it.
    pub(super) kept_from_bytes: u64,
    /// The last entry.
    pub(super) last: u64,
    /// The last number that must not be reused because its entry was refused (see [`Kind::Skipped`]) or may be lost; 0
    /// if there is none.
    pub(super) skipped: u64,
    /// Bytes of all blocks, including dropped ones.
    pub(super) bytes: u64,
    /// When the last entry was appended.
    pub(super) updated: i64,
    /// Size of the largest block.
    pub(super) largest: u64,
}

impl Totals {
    /// Size when encoded, in bytes.
    pub(super) const SIZE: usize = 56;

    /// Updates the totals with the next frame.
    pub(super) fn apply(&mut self, head: &Head) {
        match head.kind {
            Kind::Entries if head.body_length > 0 => {
                self.last = head.last;
                // All refused entries precede this block. Later numbers that a `Skipped` frame marked in advance are
                // free again.
                self.skipped = 0;
                self.updated = head.last_time;
                self.bytes = head.bytes_before + u64::from(head.body_length);
                self.largest = self.largest.max(u64::from(head.body_length));
            }
            Kind::Kept => {
                self.kept_first = head.first;
                self.kept_from_bytes = head.bytes_before;
            }
            Kind::Skipped => self.skipped = head.last,
            Kind::Entries | Kind::Summary | Kind::Reopened => {}
        }
    }

    /// The last number that is taken: by a stored entry, by a refused one, or skipped in advance.
    pub(super) fn last_number(&self) -> u64 {
        self.last.max(self.skipped)
    }

    /// The first entry that is kept.
    pub(super) fn first(&self) -> Seq {
        Seq(self.kept_first.max(1))
    }

    pub(super) fn encode(&self, out: &mut impl BufMut) {
        for number in [
            self.kept_first,
            self.kept_from_bytes,
            self.last,
            self.skipped,
            self.bytes,
        ] {
            out.put_u64_le(number);
        }
        out.put_i64_le(self.updated);
        out.put_u64_le(self.largest);
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= Self::SIZE).then(|| Self {
            kept_first: bytes.get_u64_le(),
            kept_from_bytes: bytes.get_u64_le(),
            last: bytes.get_u64_le(),
            skipped: bytes.get_u64_le(),
            bytes: bytes.get_u64_le(),
            updated: bytes.get_i64_le(),
            largest: bytes.get_u64_le(),
        })
    }
}
