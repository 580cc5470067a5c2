//! Opening a log: determining where it ends, and repairing its index.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use jupyter_protocol::KernelId;

use super::frame::Totals;
use super::index::{Files, Index};
use super::index_file::{Covered, IndexFile};
use super::log::{ReadState, Segment, info};
use super::segment::{End, HEADER, Header, Name, Offsets, Scan, Summary};
use super::{LogInfo, StoreError};

/// How many numbers are skipped after a failure of the machine. Fewer entries than this can be unsynced at a time: with
/// [`Durability::Batched`](crate::Durability::Batched) a sync is due every 50 ms, and without syncs the system writes
/// after some seconds.
const HOLE: u64 = 1 << 26;
/// At most this many machine failures since the last write of a log are counted, which limits the skipped numbers if
/// `machine.json` was lost.
const MAX_FAILURES: u64 = 1_024;

/// A log that was opened.
pub(super) struct Opened {
    /// The header of the newest segment whose header can be read.
    pub(super) header: Header,
    pub(super) state: ReadState,
}

/// Names of the files of a log.
struct Listing {
    segments: Vec<Name>,
    index: Vec<Covered>,
}

fn list(path: &Path) -> io::Result<Option<Listing>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut listing = Listing {
        segments: Vec::new(),
        index: Vec::new(),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        listing.segments.extend(Name::parse(name));
        listing.index.extend(Covered::parse(name));
    }
    listing.segments.sort_unstable();
    listing
        .index
        .sort_unstable_by_key(|covered| (covered.from, std::cmp::Reverse(covered.to)));
    Ok(Some(listing))
}

/// The number for a new segment.
pub(super) fn next_number(path: &Path) -> io::Result<u64> {
    let segments = list(path)?.map_or_else(Vec::new, |listing| listing.segments);
    Ok(segments.last().map_or(1, |name| name.number + 1))
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::failed(format!("open the log in {}", path.display()), error)
}

/// The newest segment whose header can be read; `None` if the log does not exist.
fn newest_header(path: &Path, id: KernelId, segments: &[Name]) -> Result<Option<(Name, Header)>, StoreError> {
    let mut damaged = None;
    for name in segments.iter().rev() {
        let file_path = name.path(path);
        let mut file = File::open(&file_path).map_err(|error| failed(path, &error))?;
        if let Some(header) = Header::read(&mut file).map_err(|error| failed(path, &error))? {
            if header.id != id {
                let reason = format!("{} is a part of the log of kernel {}", file_path.display(), header.id);
                return Err(StoreError::damaged(id, reason));
            }
            return Ok(Some((*name, header)));
        }
        let length = file.metadata().map_err(|error| failed(path, &error))?.len();
        // A shorter file was never finished.
        if length >= HEADER as u64 {
            damaged = Some(file_path);
        }
    }
    match damaged {
        Some(path) => Err(StoreError::damaged(
            id,
            format!("the header of {} is not valid", path.display()),
        )),
        None => Ok(None),
    }
}

/// Information about a log that is not open. Reads no more than is necessary, and does not change any file. `None` if
/// the log does not exist.
pub(super) fn look_at(path: &Path, id: KernelId, cycle: u64) -> Result<Option<LogInfo>, StoreError> {
    let Some(listing) = list(path).map_err(|error| failed(path, &error))? else {
        return Ok(None);
    };
    let Some((name, header)) = newest_header(path, id, &listing.segments)? else {
        return Ok(None);
    };
    let info = |totals| Some(info(id, header.epoch, header.created, totals));
    if listing.segments.last() == Some(&name) {
        let read = File::open(name.path(path)).and_then(|mut file| Summary::read(&mut file, header.salt));
        if let Some((summary, is_closing)) = read.map_err(|error| failed(path, &error))?
            && (is_closing || header.cycle == cycle)
        {
            return Ok(info(&summary.totals));
        }
    }
    let mut ending = Ending::default();
    ending.read(path, name, None)?;
    Ok(info(&ending.totals.unwrap_or(header.totals)))
}

/// Opens a log; `None` if it does not exist.
pub(super) fn open(path: &Path, id: KernelId, cycle: u64) -> Result<Option<Opened>, StoreError> {
    let Some(listing) = list(path).map_err(|error| failed(path, &error))? else {
        return Ok(None);
    };
    let Some((newest, header)) = newest_header(path, id, &listing.segments)? else {
        return Ok(None);
    };
    let is_after_failure = header.cycle != cycle;
    let files = open_index(path, id, &listing, is_after_failure).map_err(|error| failed(path, &error))?;
    let mut index = Index::new(files);
    let mut ending = Ending::default();
    let covered = index.files.covered();
    for name in &listing.segments {
        if name.number > covered || *name == newest {
            let index = (name.number > covered).then_some(&mut index);
            let has_damage = ending.read(path, *name, index)?;
            if has_damage {
                tracing::error!(kernel_id = %id, path = %name.path(path).display(), "a part of the log is damaged; readers get a gap");
            }
        }
    }
    let mut totals = ending.totals.unwrap_or(header.totals);
    if let Some(first) = listing.segments.first()
        && first.first > totals.first().0
        && first.first <= totals.last
    {
        // Older segments are missing.
        let header = File::open(first.path(path)).and_then(|mut file| Header::read(&mut file));
        let header = header.map_err(|error| failed(path, &error))?;
        totals.kept_first = first.first;
        totals.kept_from_bytes = header.map_or(totals.kept_from_bytes, |header| header.totals.bytes);
    }
    let is_closed = ending.is_closed && ending.is_whole;
    if ending.is_damaged || is_after_failure && !is_closed {
        // Entries that readers have received may be lost. If new entries reused their numbers, a reader that reconnects
        // would miss the new entries.
        let failures = cycle.saturating_sub(header.cycle).clamp(1, MAX_FAILURES);
        totals.skipped = totals.last_number() + HOLE * failures;
    }
    let is_newest_covered = listing.segments.last().is_some_and(|name| name.number <= covered);
    Ok(Some(Opened {
        header,
        state: ReadState {
            totals,
            segments: listing
                .segments
                .iter()
                .map(|name| Arc::new(Segment::new(*name)))
                .collect(),
            offsets: ending.offsets,
            length: ending.length,
            // If index files cover the newest segment, further updates in it would not be read when the log is opened.
            is_ended: is_after_failure || !ending.is_whole || is_newest_covered,
            is_closed,
            index,
        },
    }))
}

/// Where a log ends, according to the segments read so far.
#[derive(Default)]
struct Ending {
    totals: Option<Totals>,
    offsets: Offsets,
    length: u64,
    /// Whether the last segment ends with a whole frame.
    is_whole: bool,
    /// Whether the last segment may have had entries that cannot be found.
    is_damaged: bool,
    /// Whether the log was closed with the last frame, so that nothing was written afterwards.
    is_closed: bool,
}

impl Ending {
    /// Reads a segment. Returns whether a part of it is damaged.
    fn read(&mut self, folder: &Path, name: Name, mut index: Option<&mut Index>) -> Result<bool, StoreError> {
        let path = name.path(folder);
        let failed = |error| StoreError::failed(format!("read {}", path.display()), error);
        let mut file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let totals_before = self.totals;
        *self = Self {
            totals: totals_before,
            length,
            ..Self::default()
        };
        let Some(header) = Header::read(&mut file).map_err(failed)? else {
            // A shorter file was never finished.
            self.is_damaged = length >= HEADER as u64;
            return Ok(self.is_damaged);
        };
        let mut totals = header.totals;
        let mut scan = Scan::new(file, header.salt, HEADER as u64, length);
        let mut has_damaged_index = false;
        while let Some((at, head)) = scan.next().map_err(failed)? {
            totals.apply(&head);
            self.offsets.note(&head, at);
            self.is_closed = head.is_closing();
            if head.index_length > 0
                && let Some(index) = index.as_deref_mut()
            {
                let encoded = scan.index(at, &head).map_err(failed)?;
                has_damaged_index |= !encoded.is_some_and(|encoded| index.replay(encoded));
            }
        }
        let end = scan.end().map_err(failed)?;
        self.is_damaged = end == End::Damaged;
        self.is_whole = end == End::Whole;
        self.length = scan.position();
        self.totals = Some(totals);
        Ok(scan.skipped > 0 || has_damaged_index || self.is_damaged)
    }
}

/// Opens the index files, and rebuilds missing and damaged ones from the segments.
fn open_index(path: &Path, id: KernelId, listing: &Listing, verify: bool) -> io::Result<Files> {
    let mut files: Vec<IndexFile> = Vec::new();
    let mut replaced = Vec::new();
    let mut to = 0;
    for covered in &listing.index {
        let from = files.last().map_or(1, |file| file.covered.to + 1);
        if covered.to < from {
            // Removed with the next sync of the file that replaced it.
            replaced.extend(IndexFile::open(path, *covered, false));
            continue;
        }
        match IndexFile::open(path, *covered, verify) {
            Ok(file) => {
                if covered.from > from {
                    let missing = Covered {
                        from,
                        to: covered.from - 1,
                    };
                    files.push(rebuild(path, id, listing, missing)?);
                }
                files.push(file);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(kernel_id = %id, %error, "an index file of the log is damaged");
                let damaged = covered.path(path);
                fs::rename(&damaged, damaged.with_extension("damaged"))?;
                // The files that it replaced may still be there.
                to = to.max(covered.to);
            }
            Err(error) => return Err(error),
        }
    }
    let from = files.last().map_or(1, |file| file.covered.to + 1);
    if from <= to {
        files.push(rebuild(path, id, listing, Covered { from, to })?);
    }
    Ok(Files::new(files, replaced))
}

/// Builds an index file from the remaining segments.
fn rebuild(path: &Path, id: KernelId, listing: &Listing, covered: Covered) -> io::Result<IndexFile> {
    let mut index = Index::default();
    let mut segments = 0;
    for name in &listing.segments {
        if name.number < covered.from || name.number > covered.to {
            continue;
        }
        let mut file = File::open(name.path(path))?;
        let length = file.metadata()?.len();
        let Some(header) = Header::read(&mut file)? else {
            continue;
        };
        let mut scan = Scan::new(file, header.salt, HEADER as u64, length);
        while let Some((at, head)) = scan.next()? {
            if head.index_length > 0
                && let Some(encoded) = scan.index(at, &head)?
            {
                index.replay(encoded);
            }
        }
        segments += 1;
    }
    let all = covered.to - covered.from + 1;
    tracing::error!(kernel_id = %id, file = %covered.path(path).display(), segments, all, "an index file of the log is rebuilt from its segments; records from removed segments are missing");
    IndexFile::write(path, covered, index.all_recent().into_iter().map(Ok))
}
