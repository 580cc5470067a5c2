//! Segment files: the parts of a log.
//!
//! A segment starts with a header and continues with [frames](super::frame). It is only ever appended to. The last
//! frame of a complete segment is a summary. It ends with its own length, so it can be found without reading the other
//! frames.
//!
//! ```text
//! "KMUXLOG1" | u64 checksum of the rest | kernel id | epoch | i64 creation of the log in µs | u64 salt
//! | u64 cycle | totals | frames…
//! ```

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jupyter_protocol::KernelId;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::frame::{Frame, HEAD, Head, Kind, Totals};
use crate::Epoch;

const MAGIC: &[u8; 8] = b"KMUXLOG1";
/// Size of a segment's header in bytes.
pub(super) const HEADER: usize = 72 + Totals::SIZE;
/// The last bytes of a summary, after its frame's length.
const SUMMARY_END: &[u8; 8] = b"kmuxsumm";
/// Minimum number of bytes between two known offsets of a segment.
const OFFSETS_EVERY: u64 = 64 << 10;
/// Bytes that a scan reads at a time.
const SCAN_BYTES: usize = 64 << 10;

/// Name of a segment: its number in the log, and the number of its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) number: u64,
    pub(super) first: u64,
}

impl Name {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (number, first) = name.strip_suffix(".log")?.split_once('-')?;
        let parsed = Self {
            number: number.parse().ok()?,
            first: first.parse().ok()?,
        };
        // Names that are written differently, for example with fewer zeros, are those of other files. The largest
        // number has no successor.
        (parsed.number < u64::MAX && parsed.to_string() == name).then_some(parsed)
    }

    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(self.to_string())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:020}.log", self.number, self.first)
    }
}

/// The header of a segment.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) id: KernelId,
    pub(super) epoch: Epoch,
    /// When the log was created, in µs.
    pub(super) created: i64,
    /// Seed of the checksums of the segment's frames.
    pub(super) salt: u64,
    /// See [`Folder::cycle`](super::folder::Folder::cycle).
    pub(super) cycle: u64,
    /// The totals before the segment.
    pub(super) totals: Totals,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.put_slice(MAGIC);
        bytes.put_u64_le(0);
        bytes.put_slice(self.id.as_uuid().as_bytes());
        bytes.put_slice(self.epoch.as_bytes());
        bytes.put_i64_le(self.created);
        bytes.put_u64_le(self.salt);
        bytes.put_u64_le(self.cycle);
        self.totals.encode(&mut bytes);
        let check = xxh3_64(&bytes[16..]);
        bytes[8..16].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let check = rest.get_u64_le();
        if xxh3_64(rest) != check {
            return None;
        }
        let mut uuid = || {
            let (uuid, after) = rest.split_first_chunk::<16>()?;
            rest = after;
            Some(Uuid::from_bytes(*uuid))
        };
        let (id, epoch) = (uuid()?, uuid()?);
        Some(Self {
            id: KernelId::from(id),
            epoch: Epoch::from_uuid(epoch),
            created: rest.get_i64_le(),
            salt: rest.get_u64_le(),
            cycle: rest.get_u64_le(),
            totals: Totals::decode(rest)?,
        })
    }

    /// Reads the header of a file; `None` if it is incomplete or damaged.
    pub(super) fn read(file: &mut File) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER];
        file.seek(SeekFrom::Start(0))?;
        match file.read_exact(&mut bytes) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The offsets of some frames of a segment, each with the number of the frame's first entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Offsets(Vec<(u64, u64)>);

impl Offsets {
    /// Notes a frame, unless a known one is close.
    pub(super) fn note(&mut self, head: &Head, offset: u64) {
        let last = self.0.last().map_or(0, |(_, offset)| *offset);
        if head.has_block() && offset >= last + OFFSETS_EVERY {
            self.0.push((head.first, offset));
        }
    }

    /// The last known offset at or before this entry.
    pub(super) fn before(&self, seq: u64) -> u64 {
        let index = self.0.partition_point(|(first, _)| *first <= seq);
        index.checked_sub(1).map_or(HEADER as u64, |index| self.0[index].1)
    }
}

/// The body of a summary frame.
pub(super) struct Summary {
    pub(super) totals: Totals,
    pub(super) offsets: Offsets,
}

impl Summary {
    pub(super) fn to_frame(&self, is_closing: bool, salt: u64) -> Frame {
        let mut body = BytesMut::new();
        self.totals.encode(&mut body);
        for (first, offset) in &self.offsets.0 {
            body.put_u64_le(*first);
            body.put_u64_le(*offset);
        }
        let length = HEAD + body.len() + 4 + SUMMARY_END.len();
        body.put_u32_le(length as u32);
        body.put_slice(SUMMARY_END);
        Frame::summary(body.freeze(), is_closing, salt)
    }

    /// The summary at the end of the file, if there is one, and whether the log was closed with it.
    pub(super) fn read(file: &mut File, salt: u64) -> io::Result<Option<(Self, bool)>> {
        let length = file.metadata()?.len();
        let mut end = [0; 12];
        let Some(end_at) = length.checked_sub(end.len() as u64) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(end_at))?;
        file.read_exact(&mut end)?;
        let frame = u64::from((&end[..]).get_u32_le());
        if end[4..] != SUMMARY_END[..] || frame > length.saturating_sub(HEADER as u64) {
            return Ok(None);
        }
        let mut bytes = vec![0; frame as usize];
        file.seek(SeekFrom::Start(length - frame))?;
        file.read_exact(&mut bytes)?;
        let Some(head) = Head::parse(&bytes, salt) else {
            return Ok(None);
        };
        let body = &bytes[HEAD..];
        if head.kind != Kind::Summary || head.frame_length() != frame || !head.is_body(body, salt) {
            return Ok(None);
        }
        let Some(totals) = Totals::decode(body) else {
            return Ok(None);
        };
        let mut pairs = &body[Totals::SIZE..body.len() - end.len()];
        let mut offsets = Vec::with_capacity(pairs.len() / 16);
        while pairs.len() >= 16 {
            offsets.push((pairs.get_u64_le(), pairs.get_u64_le()));
        }
        let offsets = Offsets(offsets);
        Ok(Some((Self { totals, offsets }, head.is_closing())))
    }
}

/// A segment that is being written.
pub(super) struct Writer {
    file: File,
    pub(super) header: Header,
    /// Length of the file up to the last whole frame.
    pub(super) length: u64,
    /// Whether the end of the file is not the end of a frame, because a failed write could not be undone.
    broken: bool,
}

impl Writer {
    /// Creates the file.
    pub(super) fn create(path: &Path, header: Header) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        if let Err(error) = file.write_all(&header.encode()) {
            drop(file);
            // The write's error is returned, not that of the removal. A file that is left has no complete header.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(Self {
            file,
            header,
            length: HEADER as u64,
            broken: false,
        })
    }

    /// Continues a file. `length` is the length of the file, which ends with a whole frame.
    pub(super) fn resume(path: &Path, header: Header, length: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(length))?;
        Ok(Self {
            file,
            header,
            length,
            broken: false,
        })
    }

    /// Appends a frame and returns its offset. If that fails, the write is undone. If it cannot be undone, the file is
    /// [broken](Self::is_broken).
    pub(super) fn append(&mut self, frame: &Frame) -> io::Result<u64> {
        if let Err(error) = write_all(&mut self.file, &mut frame.parts()) {
            let undone = self.file.set_len(self.length);
            let undone = undone.and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            self.broken = undone.is_err();
            return Err(error);
        }
        let offset = self.length;
        self.length += frame.head.frame_length();
        Ok(offset)
    }

    /// Makes the file's contents survive a machine failure.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Whether nothing more can be appended to this file.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}

fn write_all(file: &mut File, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Empty parts at the start would look like a write of no bytes.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How the frames of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a whole frame.
    Whole,
    /// With the first part of a frame, because the process was killed while writing it.
    Torn,
    /// With other bytes.
    Damaged,
}

/// Reads the frames of a segment.
pub(super) struct Scan {
    file: File,
    salt: u64,
    /// Offset of the next frame.
    position: u64,
    /// Where to stop.
    end: u64,
    /// Bytes of the file from `buffer_at` on.
    buffer: Bytes,
    buffer_at: u64,
    /// Bytes to read at a time.
    read_bytes: usize,
    /// How many damaged parts were skipped.
    pub(super) skipped: u64,
}

impl Scan {
    /// Scans frames from `position` to `end`.
    pub(super) fn new(file: File, salt: u64, position: u64, end: u64) -> Self {
        Self {
            file,
            salt,
            position,
            end,
            buffer: Bytes::new(),
            buffer_at: 0,
            read_bytes: SCAN_BYTES,
            skipped: 0,
        }
    }

    /// Sets how many bytes to read at a time.
    pub(super) fn with_read_bytes(mut self, bytes: usize) -> Self {
        self.read_bytes = bytes.max(HEAD);
        self
    }

    /// Offset of the next frame.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The bytes at this offset, as far as the segment has them.
    fn bytes(&mut self, at: u64, length: usize) -> io::Result<Bytes> {
        let length = length.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX));
        let is_buffered = at >= self.buffer_at && at + length as u64 <= self.buffer_at + self.buffer.len() as u64;
        if !is_buffered {
            let wanted = length.max(self.read_bytes).min((self.end - at) as usize);
            // The old buffer would otherwise be kept while the new one is filled.
            self.buffer = Bytes::new();
            let mut buffer = BytesMut::zeroed(wanted);
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(&mut buffer)?;
            self.buffer = buffer.freeze();
            self.buffer_at = at;
        }
        let start = (at - self.buffer_at) as usize;
        Ok(self.buffer.slice(start..start + length))
    }

    fn head_at(&mut self, at: u64) -> io::Result<Option<Head>> {
        let salt = self.salt;
        Ok(Head::parse(&self.bytes(at, HEAD)?, salt))
    }

    /// The next frame's offset and head. Damaged parts are skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Head)>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let begun = self.position;
        for at in begun..self.end.saturating_sub(HEAD as u64 - 1) {
            let Some(head) = self.head_at(at)? else { continue };
            if at > begun {
                self.skipped += 1;
                self.position = at;
            }
            let end = at + head.frame_length();
            if end > self.end {
                // This frame is incomplete and ends the file.
                return Ok(None);
            }
            self.position = end;
            return Ok(Some((at, head)));
        }
        Ok(None)
    }

    /// How the frames end, after [`next`](Self::next) returned none.
    pub(super) fn end(&mut self) -> io::Result<End> {
        if self.position >= self.end {
            return Ok(End::Whole);
        }
        let left = self.end - self.position;
        let bytes = self.bytes(self.position, HEAD)?;
        // After an interrupted write, there is a part of a head, or a valid head whose frame exceeds the end. Zeros are
        // not a part of a head: after a machine failure, a file may be longer than the data written to it.
        let is_torn = if left < HEAD as u64 {
            bytes.iter().any(|byte| *byte != 0)
        } else {
            Head::parse(&bytes, self.salt).is_some()
        };
        Ok(if is_torn { End::Torn } else { End::Damaged })
    }

    /// The index updates of a frame; `None` if they are damaged.
    pub(super) fn index(&mut self, at: u64, head: &Head) -> io::Result<Option<Bytes>> {
        let bytes = self.bytes(at + HEAD as u64, head.index_length as usize)?;
        Ok(head.is_index(&bytes, self.salt).then_some(bytes))
    }

    /// The body of a frame; `None` if it is damaged.
    pub(super) fn body(&mut self, at: u64, head: &Head) -> io::Result<Option<Bytes>> {
        let body_at = at + HEAD as u64 + u64::from(head.index_length);
        let bytes = self.bytes(body_at, head.body_length as usize)?;
        let is_whole = head.is_body(&bytes, self.salt);
        if !is_whole {
            self.skipped += 1;
        }
        Ok(is_whole.then_some(bytes))
    }
}
