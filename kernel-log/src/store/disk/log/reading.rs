//! Reading a log.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jupyter_protocol::KernelId;

use super::super::StoreError;
use super::super::frame::Head;
use super::super::segment::{HEADER, Header, Name, Scan, Summary};
use super::{DiskLog, time};
use crate::{Block, Seq};

/// Bytes to read from a file at a time.
const MIN_READ: usize = 16 << 10;
const MAX_READ: usize = 1 << 20;
/// How often a read is retried because files that it needs were replaced or removed.
const RETRIES: usize = 8;

/// A segment, with the salt from its header once that was read.
pub(in super::super) struct Segment {
    pub(in super::super) name: Name,
    /// Seed of its checksums, or `None` if its header is damaged; empty until the header was read.
    salt: OnceLock<Option<u64>>,
    /// Whether its damage was logged.
    is_reported: AtomicBool,
}

impl Segment {
    pub(in super::super) fn new(name: Name) -> Self {
        Self {
            name,
            salt: OnceLock::new(),
            is_reported: AtomicBool::new(false),
        }
    }

    pub(super) fn with_salt(name: Name, salt: u64) -> Self {
        Self {
            salt: OnceLock::from(Some(salt)),
            ..Self::new(name)
        }
    }

    /// The seed of its checksums; `None` if the header is damaged.
    fn salt(&self, file: &mut File) -> io::Result<Option<u64>> {
        if let Some(salt) = self.salt.get() {
            return Ok(*salt);
        }
        let header = Header::read(file)?;
        Ok(*self.salt.get_or_init(|| header.map(|header| header.salt)))
    }

    fn report_damage(&self, id: KernelId, path: &Path) {
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            tracing::error!(kernel_id = %id, path = %path.display(), "a part of the log is damaged; readers get a gap");
        }
    }
}

/// A segment, as it was when a read began.
pub(super) struct View {
    pub(super) segment: Arc<Segment>,
    /// The end of its readable bytes, and where to start; `None` for a complete segment, whose summary has the offsets.
    newest: Option<(u64, u64)>,
}

impl View {
    /// Scans the segment from the frame with this entry, or one a little before it. `None` if the header is damaged.
    pub(super) fn scan(&self, id: KernelId, folder: &Path, seq: u64) -> io::Result<Option<Scan>> {
        let path = self.segment.name.path(folder);
        let mut file = File::open(&path)?;
        let Some(salt) = self.segment.salt(&mut file)? else {
            self.segment.report_damage(id, &path);
            return Ok(None);
        };
        let (length, offset) = match self.newest {
            Some(newest) => newest,
            None => {
                let summary = Summary::read(&mut file, salt)?;
                let offset = summary.map_or(HEADER as u64, |(summary, _)| summary.offsets.before(seq));
                (file.metadata()?.len(), offset)
            }
        };
        Ok(Some(Scan::new(file, salt, offset, length)))
    }
}

impl DiskLog {
    /// The segments with entries from `seq` on.
    pub(super) fn views(&self, seq: u64) -> Vec<View> {
        let state = self.state();
        let segments = &state.segments;
        let from = segments
            .partition_point(|segment| segment.name.first <= seq)
            .saturating_sub(1);
        let newest = segments.len().saturating_sub(1);
        segments[from..]
            .iter()
            .enumerate()
            .map(|(index, segment)| View {
                segment: segment.clone(),
                newest: (from + index == newest).then(|| (state.length, state.offsets.before(seq))),
            })
            .collect()
    }

    /// Calls `read`, and repeats it if a file that it needs was replaced or removed.
    pub(super) fn retry<T>(&self, action: &str, read: impl Fn() -> io::Result<T>) -> Result<T, StoreError> {
        self.folder.expect_open()?;
        let mut tries = 0;
        loop {
            match read() {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < RETRIES => tries += 1,
                result => return result.map_err(|error| self.failed(action, &self.path, error)),
            }
        }
    }

    pub(super) fn read_blocks(&self, after: Seq, max_bytes: usize) -> io::Result<Vec<Block>> {
        let start = after.next().max(self.state().totals.first());
        let mut blocks = Vec::new();
        let mut bytes = 0;
        if self.is_removed() {
            // Another log may have this path by now.
            return Ok(blocks);
        }
        for view in self.views(start.0) {
            let Some(scan) = view.scan(self.id, &self.path, start.0)? else {
                continue;
            };
            let mut scan = scan.with_read_bytes(max_bytes.clamp(MIN_READ, MAX_READ));
            let mut is_full = false;
            while !is_full && let Some((at, head)) = scan.next()? {
                if !head.has_block() || head.last < start.0 {
                    continue;
                }
                // A block of more than `max_bytes` is returned alone.
                if !blocks.is_empty() && bytes + head.body_length as usize > max_bytes {
                    is_full = true;
                } else if let Some(body) = scan.body(at, &head)?
                    && let Some(block) = block(&head, body).after(Seq(start.0 - 1))
                {
                    bytes += block.size();
                    blocks.push(block);
                    is_full = bytes >= max_bytes;
                }
            }
            if scan.skipped > 0 {
                view.segment.report_damage(self.id, &view.segment.name.path(&self.path));
            }
            if is_full {
                break;
            }
        }
        Ok(blocks)
    }

    /// Size of the first block after this entry.
    pub(super) fn size_after(&self, after: Seq) -> io::Result<usize> {
        let start = after.next().max(self.state().totals.first());
        if self.is_removed() {
            return Ok(0);
        }
        for view in self.views(start.0) {
            let Some(mut scan) = view.scan(self.id, &self.path, start.0)? else {
                continue;
            };
            while let Some((_, head)) = scan.next()? {
                if head.has_block() && head.last >= start.0 {
                    return Ok(head.body_length as usize);
                }
            }
        }
        Ok(0)
    }
}

fn block(head: &Head, body: Bytes) -> Block {
    let times = (time(head.first_time), time(head.last_time));
    Block::new((Seq(head.first), Seq(head.last)), times, body)
}
