//! A message of a log's stream: a block with its index updates, or a part of one.
//!
//! ```text
//! u64 writer | u32 part | u32 parts | u64 first seq | u64 last seq | u64 bytes before | i64 time of first in µs
//! | u32 length of updates | updates | entries
//! ```
//!
//! Numbers are big-endian. Updates are in the last part. Without entries, `first` is the number of the next entry. An
//! update is `u16` key length, key, `u32` value length plus one, value; 0 stands for a removal.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Block, IndexUpdate, Seq};

pub(super) const HEAD: usize = 52;

/// Information about the block, which each part repeats, and the number of the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Random number of the writer.
    pub(super) writer: u64,
    /// Number of this part, counted from 0.
    pub(super) part: u32,
    /// Number of parts of the block.
    pub(super) parts: u32,
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// Total size of all earlier blocks.
    pub(super) bytes_before: u64,
    /// When the first entry was appended, in µs.
    pub(super) time: i64,
}

pub(super) struct Part {
    pub(super) head: Head,
    pub(super) updates: Vec<IndexUpdate>,
    pub(super) entries: Bytes,
}

impl Part {
    /// Decodes a message; `None` if it is not a valid part.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < HEAD {
            return None;
        }
        let head = Head {
            writer: bytes.get_u64(),
            part: bytes.get_u32(),
            parts: bytes.get_u32(),
            first: Seq(bytes.get_u64()),
            last: Seq(bytes.get_u64()),
            bytes_before: bytes.get_u64(),
            time: bytes.get_i64(),
        };
        let updates = bytes.get_u32() as usize;
        if updates > bytes.len() || head.part >= head.parts {
            return None;
        }
        Some(Self {
            head,
            updates: decode_updates(bytes.split_to(updates))?,
            entries: bytes,
        })
    }

    pub(super) fn is_last(&self) -> bool {
        self.head.part + 1 == self.head.parts
    }
}

/// The messages of the block, none larger than `max` bytes. `None` if the updates do not fit into one message.
pub(super) fn encode(head: Head, block: Option<&Block>, updates: &[IndexUpdate], max: usize) -> Option<Vec<Bytes>> {
    let updates = encode_updates(updates)?;
    let room = max.checked_sub(HEAD).filter(|room| *room > 0)?;
    let mut entries = block.map(|block| block.bytes().clone()).unwrap_or_default();
    let mut pieces = Vec::new();
    while entries.len() > room {
        pieces.push(entries.split_to(room));
    }
    let tail_room = room.checked_sub(updates.len())?;
    if entries.len() > tail_room {
        pieces.push(entries.split_to(tail_room.max(1).min(entries.len())));
        if entries.len() > tail_room {
            pieces.push(std::mem::take(&mut entries));
        }
    }
    pieces.push(entries);
    let parts = u32::try_from(pieces.len()).ok()?;
    let messages = pieces.iter().zip(0..).map(|(piece, part)| {
        let updates = if part + 1 == parts { &updates[..] } else { &[] };
        let mut message = BytesMut::with_capacity(HEAD + updates.len() + piece.len());
        message.put_u64(head.writer);
        message.put_u32(part);
        message.put_u32(parts);
        message.put_u64(head.first.0);
        message.put_u64(head.last.0);
        message.put_u64(head.bytes_before);
        message.put_i64(head.time);
        message.put_u32(updates.len() as u32);
        message.put_slice(updates);
        message.put_slice(piece);
        message.freeze()
    });
    Some(messages.collect())
}

/// Splits the updates into nonempty batches of about this many bytes.
pub(super) fn batches(updates: &[IndexUpdate], max: usize) -> Vec<&[IndexUpdate]> {
    let mut batches = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, update) in updates.iter().enumerate() {
        let size = 6 + update.key.len() + update.value.as_ref().map_or(0, Bytes::len);
        if bytes > 0 && bytes + size > max {
            batches.push(&updates[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += size;
    }
    if begin < updates.len() {
        batches.push(&updates[begin..]);
    }
    batches
}

fn encode_updates(updates: &[IndexUpdate]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for update in updates {
        bytes.put_u16(u16::try_from(update.key.len()).ok()?);
        bytes.put_slice(&update.key);
        match &update.value {
            Some(value) => {
                bytes.put_u32(u32::try_from(value.len()).ok()?.checked_add(1)?);
                bytes.put_slice(value);
            }
            None => bytes.put_u32(0),
        }
    }
    Some(bytes)
}

fn decode_updates(mut bytes: Bytes) -> Option<Vec<IndexUpdate>> {
    let mut updates = Vec::new();
    while !bytes.is_empty() {
        let key_length = usize::from(bytes.try_get_u16().ok()?);
        let key = (key_length <= bytes.len()).then(|| bytes.split_to(key_length))?;
        let value = match bytes.try_get_u32().ok()? {
            0 => None,
            length => {
                let length = length as usize - 1;
                Some((length <= bytes.len()).then(|| bytes.split_to(length))?)
            }
        };
        updates.push(IndexUpdate { key, value });
    }
    Some(updates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_written_whatever_their_size() {
        let head = Head {
            writer: 7,
            part: 0,
            parts: 1,
            first: Seq(3),
            last: Seq(9),
            bytes_before: 11,
            time: -5,
        };
        let updates = [
            IndexUpdate::put("a key", "a value"),
            IndexUpdate::remove("gone"),
            IndexUpdate::put("", ""),
        ];
        for length in 0..400 {
            let entries: Bytes = (0..length).map(|n| n as u8).collect::<Vec<_>>().into();
            let block = Block::new((Seq(3), Seq(9)), Default::default(), entries.clone());
            let messages = encode(head, Some(&block), &updates, HEAD + 100).unwrap();
            let mut read = Vec::new();
            for (n, message) in messages.iter().enumerate() {
                assert!(message.len() <= HEAD + 100);
                let part = Part::decode(message.clone()).unwrap();
                assert_eq!((part.head.part, part.head.parts), (n as u32, messages.len() as u32));
                assert_eq!((part.head.first, part.head.time), (Seq(3), -5));
                assert_eq!(part.updates, if part.is_last() { &updates[..] } else { &[] });
                read.extend_from_slice(&part.entries);
            }
            assert_eq!(read, entries, "{length}");
        }
        assert!(encode(head, None, &updates, HEAD + 10).is_none());
        let many = vec![IndexUpdate::put("key", vec![0; 100]); 25];
        let sizes: Vec<usize> = batches(&many, 1_100).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [10, 10, 5]);
        assert_eq!(batches(&many, 10).len(), 25);
        assert!(batches(&[], 10).is_empty());
        assert!(Part::decode(Bytes::from_static(&[0; 60])).is_none());
    }
}
