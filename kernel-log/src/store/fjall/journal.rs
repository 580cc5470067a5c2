//! Repairs fjall's journals before fjall reads them.
//!
//! All logs share the journals. If a journal is damaged, fjall either refuses to open or silently discards everything
//! after the damage. This module cuts out only the damaged part, which is a block of one log, and reports it. A
//! half-written end, as after a machine failure, is cut off, as fjall does.
//!
//! A journal is a sequence of batches (fjall's format 3, little-endian numbers), followed by zeros:
//!
//! ```text
//! batch  u8 1 | u32 number of items | u64 number of the batch | items | u8 3 | u64 xxh3 of the items | "FJL" 3
//! item   u8 2 | u8 type | u8 0, not compressed | u64 keyspace | u16 key's length | u32 value's length, twice | key | value
//! item   u8 4 | u64 keyspace, which is emptied
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8] = b"FJL\x03";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const ITEM_HEAD: usize = 21;

/// Why the journals were not repaired.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// Written by another version of fjall.
    #[error(
        "{path} has format {found} of fjall, and only format {} is known here: start the version that wrote it", MAGIC[3]
    )]
    UnknownFormat { path: String, found: u8 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Cuts damaged parts out of the folder's journals and returns their total size in bytes.
///
/// # Errors
/// [`JournalError::UnknownFormat`] if the folder belongs to another version of fjall; nothing is changed then.
pub(super) fn repair(folder: &Path) -> Result<u64, JournalError> {
    let marker = folder.join("version");
    match fs::read(&marker) {
        Ok(bytes) => check_format(&marker, bytes.first_chunk())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut damaged = 0;
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        // fjall will create it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            damaged += repair_file(&path)?;
        }
    }
    Ok(damaged)
}

/// Formats are numbers. Anything else after `FJL` is data of a kernel.
const FIRST_TEXT: u8 = 32;

fn check_format(path: &Path, magic: Option<&[u8; 4]>) -> Result<(), JournalError> {
    match magic {
        Some(&[b'F', b'J', b'L', found]) if found != MAGIC[3] && found < FIRST_TEXT => {
            Err(JournalError::UnknownFormat {
                path: path.display().to_string(),
                found,
            })
        }
        // fjall reports other problems.
        _ => Ok(()),
    }
}

fn repair_file(path: &Path) -> Result<u64, JournalError> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let valid = skip_batches(&mut reader)?;
    reader.seek(SeekFrom::Start(valid))?;
    if only_zeros(&mut reader)? {
        return Ok(0);
    }
    reader.seek(SeekFrom::Start(valid))?;
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest)?;
    let written = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    rest.truncate(written);
    let mut kept = Vec::new();
    let mut damaged = 0;
    let mut position = 0;
    while let Some(next) = next_batch(&rest, position) {
        damaged += next - position;
        let length = skip_batches(&mut &rest[next..])? as usize;
        kept.push(next..next + length);
        position = next + length;
    }
    if kept.is_empty() {
        if valid == 0 {
            // The file has no batch in the known format. Batches of other formats may end with the same three letters.
            let ends = memchr::memmem::find_iter(&rest, &MAGIC[..3]);
            for end in ends {
                check_format(path, rest[end..].first_chunk())?;
            }
        }
        // Nothing valid follows: the batch was being written when the machine went down.
        File::options().write(true).open(path)?.set_len(valid)?;
        return Ok(0);
    }
    let repaired = path.with_extension("repaired");
    let mut writer = BufWriter::new(File::create(&repaired)?);
    reader.seek(SeekFrom::Start(0))?;
    io::copy(&mut reader.take(valid), &mut writer)?;
    for range in kept {
        writer.write_all(&rest[range])?;
    }
    writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    fs::rename(&repaired, path)?;
    Ok(damaged as u64)
}

/// The next valid batch after a damaged one at the position.
///
/// Data of a kernel may look like a batch, so the extent that the damaged batch claims is not searched. If it claims
/// more than the file has, it was being written when the machine went down.
fn next_batch(bytes: &[u8], position: usize) -> Option<usize> {
    let end = position + claimed_length(&bytes[position..]);
    let rest = bytes.get(end..)?;
    let after_others = memchr::memmem::find_iter(rest, MAGIC).map(|found| end + found + MAGIC.len());
    std::iter::once(end)
        .chain(after_others)
        .find(|start| matches!(skip_batch(&mut &bytes[*start..]), Ok(Some(_))))
}

/// The length that a batch claims, as far as it is readable. The kind bytes of the batch and its items are not
/// validated.
fn claimed_length(bytes: &[u8]) -> usize {
    let &[_, c0, c1, c2, c3, _, _, _, _, _, _, _, _, ..] = bytes else {
        return 0;
    };
    let mut length = 13_usize;
    for _ in 0..u32::from_le_bytes([c0, c1, c2, c3]) {
        match bytes.get(length..).unwrap_or_default() {
            [CLEAR, ..] => length += 9,
            item => match item.first_chunk() {
                Some(head) => length += ITEM_HEAD + after_head(head) as usize,
                None => return length,
            },
        }
    }
    length + 13
}

/// The claimed lengths of an item's key and value.
fn after_head(head: &[u8; ITEM_HEAD]) -> u64 {
    let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = *head;
    u64::from(u16::from_le_bytes([k0, k1])) + u64::from(u32::from_le_bytes([v0, v1, v2, v3]))
}

/// The length of the reader's batches up to the first invalid one.
fn skip_batches(reader: &mut impl Read) -> io::Result<u64> {
    let mut length = 0;
    while let Some(batch) = skip_batch(reader)? {
        length += batch;
    }
    Ok(length)
}

/// The length of a batch; `None` if it is invalid.
fn skip_batch(reader: &mut impl Read) -> io::Result<Option<u64>> {
    match try_skip_batch(reader) {
        Ok(length) => Ok(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn try_skip_batch(reader: &mut impl Read) -> io::Result<Option<u64>> {
    let mut start = [0; 13];
    reader.read_exact(&mut start)?;
    let [START, c0, c1, c2, c3, ..] = start else {
        return Ok(None);
    };
    let mut length = start.len() as u64;
    let mut hash = Xxh3::new();
    for _ in 0..u32::from_le_bytes([c0, c1, c2, c3]) {
        let mut head = [0; ITEM_HEAD];
        reader.read_exact(&mut head[..9])?;
        match head[0] {
            CLEAR => {
                hash.update(&head[..9]);
                length += 9;
            }
            ITEM => {
                reader.read_exact(&mut head[9..])?;
                hash.update(&head);
                let left = after_head(&head);
                if !hash_next(reader, left, &mut hash)? {
                    return Ok(None);
                }
                length += ITEM_HEAD as u64 + left;
            }
            _ => return Ok(None),
        }
    }
    let mut end = [0; 13];
    reader.read_exact(&mut end)?;
    let valid = end[0] == END && end[1..9] == hash.digest().to_le_bytes() && &end[9..] == MAGIC;
    Ok(valid.then_some(length + end.len() as u64))
}

/// Hashes the next `left` bytes. Returns `false` if the reader ends before.
fn hash_next(reader: &mut impl Read, mut left: u64, hash: &mut Xxh3) -> io::Result<bool> {
    let mut buffer = [0; 8 << 10];
    while left > 0 {
        let wanted = buffer.len().min(left as usize);
        let read = reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Ok(false);
        }
        hash.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(true)
}

fn only_zeros(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(true);
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch with one item.
    fn batch(value: &[u8]) -> Vec<u8> {
        let mut item = vec![ITEM, 0, 0];
        item.extend(2_u64.to_le_bytes());
        item.extend(1_u16.to_le_bytes());
        item.extend([value.len() as u32; 2].map(u32::to_le_bytes).concat());
        item.push(b'k');
        item.extend(value);
        let mut hash = Xxh3::new();
        hash.update(&item);
        let mut batch = vec![START, 1, 0, 0, 0];
        batch.extend(7_u64.to_le_bytes());
        batch.extend(item);
        batch.push(END);
        batch.extend(hash.digest().to_le_bytes());
        batch.extend(MAGIC);
        batch
    }

    fn repaired(bytes: &[u8]) -> (u64, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.jnl");
        fs::write(&path, bytes).unwrap();
        let damaged = repair(folder.path()).unwrap();
        (damaged, fs::read(&path).unwrap())
    }

    #[test]
    fn a_batch_inside_a_torn_one_is_not_taken_for_a_batch() {
        let first = batch(b"sound");
        let forged = batch(b"of another log");
        let around = batch(&[b"x\xff", MAGIC, &forged, b"and more of it"].concat());
        for end in 1..around.len() {
            let mut torn = [&first[..], &around[..end]].concat();
            assert_eq!(repaired(&torn), (0, first.clone()), "torn after {end}");
            torn.resize(torn.len() + 100, 0);
            let (damaged, left) = repaired(&torn);
            assert!(damaged == 0 && left == first, "torn after {end}, and zeros");
        }
    }

    #[test]
    fn a_journal_of_another_version_is_refused_and_left_alone() {
        let known = batch(b"sound");
        let mut newer = known.clone();
        let end = newer.len();
        newer[end - 1] = 4;
        // The encoding of its items differs.
        newer[0] = 9;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.jnl");
        fs::write(&path, [&newer[..], &newer, &[0; 100]].concat()).unwrap();
        let before = fs::read(&path).unwrap();
        let refused = repair(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("0.jnl") && refused.contains("format 4"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), before);

        fs::write(&path, &known[..known.len() - 1]).unwrap();
        fs::write(folder.path().join("version"), b"FJL\x04").unwrap();
        let refused = repair(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("version") && refused.contains("format 4"), "{refused}");
        assert_eq!(fs::read(&path).unwrap().len(), known.len() - 1);
    }

    #[test]
    fn a_batch_inside_a_damaged_one_is_not_taken_for_a_batch() {
        let (first, last) = (batch(b"sound"), batch(b"the last"));
        let around = batch(&[MAGIC, &batch(b"of another log"), b"and more of it"].concat());
        // The hash does not cover the batch's number.
        for at in (0..around.len()).filter(|at| !(5..13).contains(at)) {
            let mut damaged = around.clone();
            damaged[at] ^= 0xff;
            let (_, left) = repaired(&[&first[..], &damaged, &last].concat());
            // A damaged length may look like an unfinished write.
            let is_length = (1..5).contains(&at) || (13 + 11..13 + ITEM_HEAD).contains(&at);
            let kept = [&first[..], &last].concat();
            assert!(left == kept || is_length && left == first, "damaged at {at}");
        }
    }
}
