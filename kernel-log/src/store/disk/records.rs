//! The encoding of index records, in frames and in index files.
//!
//! ```text
//! u32 checksum | u16 length of the key | u32 length of the value + 1, or 0 if the record is removed | key | value
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

/// Size of a record without key and value.
const FIXED: usize = 10;

/// A record; without a value, its removal.
pub(super) type Record = (Bytes, Option<Bytes>);

/// Appends a record to `out`. Keys have at most 65,535 bytes.
pub(super) fn encode(out: &mut BytesMut, key: &[u8], value: Option<&[u8]>) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u16_le(key.len() as u16);
    out.put_u32_le(value.map_or(0, |value| value.len() as u32 + 1));
    out.put_slice(key);
    out.put_slice(value.unwrap_or_default());
    let check = xxh3_64(&out[start + 4..]) as u32;
    out[start..start + 4].copy_from_slice(&check.to_le_bytes());
}

/// Size of an encoded record.
pub(super) fn size(key: &[u8], value: Option<&[u8]>) -> usize {
    FIXED + key.len() + value.map_or(0, <[u8]>::len)
}

/// Takes the first record off `bytes`; `None` if it is incomplete or damaged.
pub(super) fn decode(bytes: &mut Bytes) -> Option<Record> {
    let mut head = bytes.first_chunk::<FIXED>()?.as_slice();
    let check = head.get_u32_le();
    let key_length = usize::from(head.get_u16_le());
    let value_length = head.get_u32_le() as usize;
    let length = FIXED + key_length + value_length.saturating_sub(1);
    if length > bytes.len() || xxh3_64(&bytes[4..length]) as u32 != check {
        return None;
    }
    let record = bytes.split_to(length);
    let key = record.slice(FIXED..FIXED + key_length);
    let value = (value_length > 0).then(|| record.slice(FIXED + key_length..));
    Some((key, value))
}
