//! Sorted files of index records.
//!
//! A file has the newest records of a range of segments:
//!
//! ```text
//! "KMUXIDX1" | records, sorted by key | u64 offset of each record, and of the end | u64 number of records
//! | u64 checksum of the offsets and the number | "kmuxidx1"
//! ```

use std::cmp::Ordering;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{self, AtomicBool};

use bytes::{Buf, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::records::{self, Record};

const MAGIC: &[u8; 8] = b"KMUXIDX1";
const END: &[u8; 8] = b"kmuxidx1";
/// Size of the end of a file: number of records, checksum, mark.
const TAIL: u64 = 24;
/// Number of records that a cursor reads at a time.
const AT_ONCE: u64 = 64;

/// The range of segment numbers that an index file covers, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Covered {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Covered {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (from, to) = name.strip_suffix(".idx")?.split_once('-')?;
        let parsed = Self {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        };
        let is_range = 1 <= parsed.from && parsed.from <= parsed.to && parsed.to < u64::MAX;
        (is_range && parsed.to_string() == name).then_some(parsed)
    }

    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(self.to_string())
    }
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:010}.idx", self.from, self.to)
    }
}

/// An index file.
#[derive(Debug)]
pub(super) struct IndexFile {
    pub(super) covered: Covered,
    path: PathBuf,
    count: u64,
    offsets_at: u64,
    is_synced: AtomicBool,
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the index file {} is damaged", path.display()),
    )
}

impl IndexFile {
    /// Writes the records, which are in key order, to a new file.
    pub(super) fn write(
        folder: &Path,
        covered: Covered,
        records: impl Iterator<Item = io::Result<Record>>,
    ) -> io::Result<Self> {
        let path = covered.path(folder);
        let unfinished = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = write_to(options.open(&unfinished)?, records);
        let (count, offsets_at) = written
            .and_then(|written| fs::rename(&unfinished, &path).map(|()| written))
            .inspect_err(|_| {
                let _ = fs::remove_file(&unfinished);
            })?;
        Ok(Self {
            covered,
            path,
            count,
            offsets_at,
            is_synced: AtomicBool::new(false),
        })
    }

    /// Opens a file. With `verify`, reads all of it; otherwise damaged records are found when they are read.
    pub(super) fn open(folder: &Path, covered: Covered, verify: bool) -> io::Result<Self> {
        let path = covered.path(folder);
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        let tail_at = length.checked_sub(TAIL).ok_or_else(|| damaged(&path))?;
        let mut tail = [0; TAIL as usize];
        file.seek(SeekFrom::Start(tail_at))?;
        file.read_exact(&mut tail)?;
        let mut rest = &tail[..];
        let (count, check) = (rest.get_u64_le(), rest.get_u64_le());
        let offsets_at = count
            .checked_add(1)
            .and_then(|count| tail_at.checked_sub(count.checked_mul(8)?))
            .filter(|at| rest == &END[..] && *at >= MAGIC.len() as u64)
            .ok_or_else(|| damaged(&path))?;
        file.seek(SeekFrom::Start(offsets_at))?;
        if hash(file.take(tail_at + 8 - offsets_at))? != check {
            return Err(damaged(&path));
        }
        let index_file = Self {
            covered,
            path,
            count,
            offsets_at,
            is_synced: AtomicBool::new(false),
        };
        if verify {
            index_file
                .range(&[], None, false)?
                .try_for_each(|record| record.map(drop))?;
        }
        Ok(index_file)
    }

    /// Size of the records in bytes, including [`MAGIC`].
    pub(super) fn bytes(&self) -> u64 {
        self.offsets_at
    }

    /// Makes the file's contents survive a machine failure. Returns `false` if no sync was necessary.
    pub(super) fn sync(&self) -> io::Result<bool> {
        if self.is_synced.load(atomic::Ordering::Acquire) {
            return Ok(false);
        }
        match File::open(&self.path) {
            Ok(file) => file.sync_all()?,
            // Another thread replaced and removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        self.is_synced.store(true, atomic::Ordering::Release);
        Ok(true)
    }

    /// Removes the file. Removing it again succeeds.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The record of this key.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Record>> {
        let mut file = self.reader()?;
        let at = file.first_at_or_after(key)?;
        if at >= self.count {
            return Ok(None);
        }
        let record = file.records(at, 1)?.pop();
        Ok(record.filter(|(found, _)| **found == *key))
    }

    /// The records with keys from `start` (inclusive) to `end` (exclusive; `None` for all later keys), in key order, or
    /// in reverse with `newest_first`.
    pub(super) fn range(&self, start: &[u8], end: Option<&[u8]>, newest_first: bool) -> io::Result<Cursor> {
        let mut reader = self.reader()?;
        let from = reader.first_at_or_after(start)?;
        let to = match end {
            Some(end) => reader.first_at_or_after(end)?,
            None => self.count,
        };
        Ok(Cursor {
            reader,
            from,
            to: to.max(from),
            newest_first,
            read: Vec::new(),
        })
    }

    fn reader(&self) -> io::Result<Reader> {
        Ok(Reader {
            file: File::open(&self.path)?,
            path: self.path.clone(),
            count: self.count,
            offsets_at: self.offsets_at,
        })
    }
}

fn hash(mut reader: impl Read) -> io::Result<u64> {
    let mut hash = Xxh3::new();
    let mut buffer = [0; 8 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Writes the records, and returns their number and the position of the offsets.
fn write_to(file: File, records: impl Iterator<Item = io::Result<Record>>) -> io::Result<(u64, u64)> {
    let mut out = BufWriter::new(file);
    out.write_all(MAGIC)?;
    let mut at = MAGIC.len() as u64;
    let mut offsets = at.to_le_bytes().to_vec();
    let mut encoded = BytesMut::new();
    for record in records {
        let (key, value) = record?;
        encoded.clear();
        records::encode(&mut encoded, &key, value.as_deref());
        out.write_all(&encoded)?;
        at += encoded.len() as u64;
        offsets.extend_from_slice(&at.to_le_bytes());
    }
    let count = offsets.len() as u64 / 8 - 1;
    offsets.extend_from_slice(&count.to_le_bytes());
    out.write_all(&offsets)?;
    // The checksum of the offsets and the number.
    out.write_all(&xxh3_64(&offsets).to_le_bytes())?;
    out.write_all(END)?;
    out.flush()?;
    Ok((count, at))
}

struct Reader {
    file: File,
    path: PathBuf,
    count: u64,
    offsets_at: u64,
}

impl Reader {
    /// The number of the first record whose key is at or after `key`.
    fn first_at_or_after(&mut self, key: &[u8]) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.records(middle, 1)?.pop().ok_or_else(|| damaged(&self.path))?;
            match (*record.0).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads `count` records from this one on.
    fn records(&mut self, first: u64, count: u64) -> io::Result<Vec<Record>> {
        let mut offsets = vec![0; (count as usize + 1) * 8];
        self.file.seek(SeekFrom::Start(self.offsets_at + first * 8))?;
        self.file.read_exact(&mut offsets)?;
        let offset = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (start, end) = (offset(offsets.first_chunk()), offset(offsets.last_chunk()));
        let length = end
            .checked_sub(start)
            .filter(|_| end <= self.offsets_at)
            .ok_or_else(|| damaged(&self.path))?;
        let mut bytes = BytesMut::zeroed(length as usize);
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut bytes)?;
        let mut bytes: Bytes = bytes.freeze();
        (0..count)
            .map(|_| records::decode(&mut bytes).ok_or_else(|| damaged(&self.path)))
            .collect()
    }
}

/// Iterates over records of an index file.
pub(super) struct Cursor {
    reader: Reader,
    from: u64,
    to: u64,
    newest_first: bool,
    /// Records that were read ahead, the next one last.
    read: Vec<Record>,
}

impl Iterator for Cursor {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty() && self.from < self.to {
            let count = (self.to - self.from).min(AT_ONCE);
            let first = if self.newest_first { self.to - count } else { self.from };
            match self.reader.records(first, count) {
                Ok(records) => self.read = records,
                Err(error) => {
                    self.from = self.to;
                    return Some(Err(error));
                }
            }
            if self.newest_first {
                self.to -= count;
            } else {
                self.from += count;
                self.read.reverse();
            }
        }
        self.read.pop().map(Ok)
    }
}

type Source<'a> = std::iter::Peekable<Box<dyn Iterator<Item = io::Result<Record>> + 'a>>;

/// Merges sorted sources. If several have a record of the same key, returns only that of the first source. Includes
/// removals.
pub(super) struct Merge<'a> {
    sources: Vec<Source<'a>>,
    newest_first: bool,
}

impl<'a> Merge<'a> {
    pub(super) fn new(
        sources: impl IntoIterator<Item = Box<dyn Iterator<Item = io::Result<Record>> + 'a>>,
        newest_first: bool,
    ) -> Self {
        Self {
            sources: sources.into_iter().map(Iterator::peekable).collect(),
            newest_first,
        }
    }
}

impl Iterator for Merge<'_> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut best: Option<(usize, Bytes)> = None;
        for (index, source) in self.sources.iter_mut().enumerate() {
            match source.peek() {
                None => {}
                Some(Err(_)) => return source.next(),
                Some(Ok((key, _))) => {
                    let is_earlier = best
                        .as_ref()
                        .is_none_or(|(_, best)| if self.newest_first { key > best } else { key < best });
                    if is_earlier {
                        best = Some((index, key.clone()));
                    }
                }
            }
        }
        let (index, key) = best?;
        let record = self.sources[index].next();
        for source in &mut self.sources {
            source.next_if(|other| other.as_ref().is_ok_and(|(other, _)| *other == key));
        }
        record
    }
}
