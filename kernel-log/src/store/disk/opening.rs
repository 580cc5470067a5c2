//! Opening a log: finding out where it ends, and mending its index.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use jupyter_protocol::KernelId;
use memchr::memmem;

use super::frame::Head;
use super::index::{Files, Index};
use super::index_file::{Covered, IndexFile};
use super::log::{Segment, State, info};
use super::segment::{End, HEADER, Header, Name, Offsets, Scan, Summary};
use super::{LogInfo, StoreError};
use crate::{Block, Origin};

/// More entries than can be appended and not synced. A sync is due every 50 ms, and the disk may be slow.
pub(super) const HOLE: u64 = 1 << 20;

/// A log that was opened.
pub(super) struct Opened {
    /// The header of its newest segment that has one.
    pub(super) header: Header,
    pub(super) state: State,
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

/// The newest header that can be read; `None` if the log does not exist.
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

/// Information about a log that is not open, without reading more than is necessary. `None` if it does not exist.
pub(super) fn look_at(path: &Path, id: KernelId, cycle: u64) -> Result<Option<LogInfo>, StoreError> {
    let Some(listing) = list(path).map_err(|error| failed(path, &error))? else {
        return Ok(None);
    };
    let Some((name, header)) = newest_header(path, id, &listing.segments)? else {
        return Ok(None);
    };
    if header.cycle == cycle && listing.segments.last() == Some(&name) {
        let read = File::open(name.path(path)).and_then(|mut file| Summary::read(&mut file, header.salt));
        if let Some(summary) = read.map_err(|error| failed(path, &error))? {
            return Ok(Some(info(id, header.epoch, header.created, &summary.totals)));
        }
    }
    let opened = open(path, id, cycle)?;
    Ok(opened.map(|opened| info(id, header.epoch, header.created, &opened.state.totals)))
}

/// Opens a log; `None` if it does not exist.
pub(super) fn open(path: &Path, id: KernelId, cycle: u64) -> Result<Option<Opened>, StoreError> {
    let Some(listing) = list(path).map_err(|error| failed(path, &error))? else {
        return Ok(None);
    };
    let Some((_, header)) = newest_header(path, id, &listing.segments)? else {
        return Ok(None);
    };
    let after_failure = header.cycle != cycle;
    let files = open_index(path, id, &listing, after_failure).map_err(|error| failed(path, &error))?;
    let mut index = Index::new(files);
    let mut ending = Ending::default();
    let covered = index.files.covered();
    let newest = listing.segments.last().copied();
    for name in &listing.segments {
        if name.number > covered || Some(*name) == newest {
            let keep_index = name.number > covered;
            ending.read(path, id, *name, keep_index.then_some(&mut index))?;
        }
    }
    let mut totals = ending.totals.unwrap_or(header.totals);
    if let Some(first) = listing.segments.first()
        && first.first > totals.first().0
        && first.first <= totals.last
    {
        // Older segments are missing.
        totals.kept_first = first.first;
    }
    if (after_failure || ending.is_damaged) && !ending.is_of_dead_kernel {
        // Entries may be lost that readers have seen. If their numbers were reused, a reader that reconnects would
        // mistake the new entries for them.
        totals.skipped = totals.last_number() + HOLE;
    }
    Ok(Some(Opened {
        header,
        state: State {
            totals,
            segments: listing
                .segments
                .iter()
                .map(|name| Arc::new(Segment::new(*name)))
                .collect(),
            offsets: ending.offsets,
            length: ending.length,
            is_ended: after_failure || !ending.is_whole,
            index,
        },
    }))
}

/// Where a log ends, according to the segments read so far.
#[derive(Default)]
struct Ending {
    totals: Option<super::frame::Totals>,
    offsets: Offsets,
    length: u64,
    /// Whether the last segment can be continued.
    is_whole: bool,
    /// Whether the last segment may have had entries that cannot be found.
    is_damaged: bool,
    /// Whether the last entry says that the kernel is dead, after which nothing was written.
    is_of_dead_kernel: bool,
}

impl Ending {
    fn read(
        &mut self,
        folder: &Path,
        id: KernelId,
        name: Name,
        mut index: Option<&mut Index>,
    ) -> Result<(), StoreError> {
        let path = name.path(folder);
        let failed = |error| StoreError::failed(format!("read {}", path.display()), error);
        let mut file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        self.is_whole = false;
        self.offsets = Offsets::default();
        self.length = length;
        let Some(header) = Header::read(&mut file).map_err(failed)? else {
            self.is_damaged = length >= HEADER as u64;
            return Ok(());
        };
        let mut totals = header.totals;
        let mut scan = Scan::new(file, header.salt, HEADER as u64, length);
        let mut last_block: Option<(u64, Head)> = None;
        let mut has_damaged_index = false;
        while let Some((at, head)) = scan.next().map_err(failed)? {
            totals.apply(&head);
            self.offsets.note(&head, at);
            if head.index_length > 0
                && let Some(index) = index.as_deref_mut()
            {
                let encoded = scan.index(at, &head).map_err(failed)?;
                has_damaged_index |= !encoded.is_some_and(|encoded| index.replay(encoded));
            }
            if head.has_block() {
                last_block = Some((at, head));
            }
        }
        let end = scan.end().map_err(failed)?;
        if scan.skipped > 0 || has_damaged_index || end == End::Damaged {
            tracing::error!(kernel_id = %id, path = %path.display(), "a part of the log is damaged; readers learn which entries are missing");
        }
        self.is_damaged = end == End::Damaged;
        self.is_whole = end == End::Whole;
        self.length = scan.position();
        self.totals = Some(totals);
        if let Some((at, head)) = last_block {
            let body = scan.body(at, &head).map_err(failed)?;
            self.is_of_dead_kernel = body
                .and_then(Block::recover)
                .is_some_and(|block| tells_of_the_end(&block));
        }
        Ok(())
    }
}

/// Whether the last entry announces the kernel's death.
fn tells_of_the_end(block: &Block) -> bool {
    block.entries().last().is_some_and(|entry| {
        entry.origin() == Origin::Lifecycle && memmem::find(entry.message().content(), b"\"dead\"").is_some()
    })
}

/// Opens the index files, removes those that others have replaced, and makes missing and damaged ones again from the
/// segments.
fn open_index(path: &Path, id: KernelId, listing: &Listing, verify: bool) -> io::Result<Files> {
    let mut files: Vec<IndexFile> = Vec::new();
    for covered in &listing.index {
        let from = files.last().map_or(1, |file| file.covered.to + 1);
        if covered.to < from {
            fs::remove_file(covered.path(path))?;
            continue;
        }
        if covered.from > from {
            let missing = Covered {
                from,
                to: covered.from - 1,
            };
            tracing::error!(kernel_id = %id, file = %missing.path(path).display(), "an index file of the log is missing");
            files.push(rebuild(path, listing, missing)?);
        }
        match IndexFile::open(path, *covered, verify) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(kernel_id = %id, %error, "an index file of the log is damaged");
                let damaged = covered.path(path);
                fs::rename(&damaged, damaged.with_extension("damaged"))?;
                files.push(rebuild(path, listing, *covered)?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Files::new(files))
}

/// Makes an index file from the segments that are left.
fn rebuild(path: &Path, listing: &Listing, covered: Covered) -> io::Result<IndexFile> {
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
    if segments < all {
        tracing::error!(file = %covered.path(path).display(), segments, all, "an index file was made again from some of its segments only; older executions may not be listed");
    }
    IndexFile::write(path, covered, index.all_recent().into_iter().map(Ok))
}
