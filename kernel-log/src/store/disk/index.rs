//! The index of a log: the newest updates in memory, the others in [index files](super::index_file).
//!
//! The updates are also in the frames of the segments, so index files are not synced when they are written. A file is
//! synced before the segments whose updates it contains, or the files that it replaces, are removed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::folder::sync_folder;
use super::index_file::{Covered, IndexFile, Merge};
use super::records::{self, Record};
use crate::IndexUpdate;

/// Size in bytes at which the updates in memory are written to a file.
const FILE_BYTES: usize = 64 << 10;
/// Maximum number of replaced files that wait for a sync.
const MAX_REPLACED: usize = 8;
/// Maximum number of complete segments whose updates are in no index file. Opening a log reads these segments.
const SEGMENTS: u64 = 8;

/// The index of a log.
#[derive(Debug, Default)]
pub(super) struct Index {
    recent: BTreeMap<Bytes, Option<Bytes>>,
    recent_bytes: usize,
    pub(super) files: Files,
}

impl Index {
    /// The index in these files, and nothing in memory.
    pub(super) fn new(files: Files) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        self.recent_bytes += records::size(&key, value.as_deref());
        let key_length = key.len();
        if let Some(before) = self.recent.insert(key, value) {
            self.recent_bytes -= records::size(&[], before.as_deref()) + key_length;
        }
    }

    pub(super) fn update(&mut self, updates: &[IndexUpdate]) {
        for IndexUpdate { key, value } in updates {
            self.insert(key.clone(), value.clone());
        }
    }

    /// Applies the index updates of a frame; `false` if some are damaged.
    pub(super) fn replay(&mut self, mut encoded: Bytes) -> bool {
        while !encoded.is_empty() {
            let Some((key, value)) = records::decode(&mut encoded) else {
                return false;
            };
            // Copies them, because slices would keep the buffer of the whole scan in memory.
            self.insert(
                Bytes::copy_from_slice(&key),
                value.map(|value| Bytes::copy_from_slice(&value)),
            );
        }
        true
    }

    /// Whether there are updates in memory.
    pub(super) fn has_recent(&self) -> bool {
        !self.recent.is_empty()
    }

    /// Whether there are enough updates in memory for a file.
    pub(super) fn is_large(&self) -> bool {
        self.recent_bytes >= FILE_BYTES
    }

    /// Whether the updates up to this segment should be in a file.
    pub(super) fn is_due(&self, segment: u64) -> bool {
        self.is_large() || segment >= self.files.covered() + SEGMENTS
    }

    /// The update of this key in memory.
    pub(super) fn recent(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.recent.get(key).cloned()
    }

    /// The updates in memory of keys from `start` (inclusive) to `end` (exclusive). `end` must be greater than `start`.
    pub(super) fn recent_range(&self, start: &[u8], end: &[u8]) -> Vec<Record> {
        self.recent
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// All updates in memory.
    pub(super) fn all_recent(&self) -> Vec<Record> {
        let updates = self.recent.iter();
        updates.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// The index files of a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Oldest first.
    files: Vec<Arc<IndexFile>>,
    /// Replaced files, which are removed once the files that replace them are synced.
    replaced: Vec<Arc<IndexFile>>,
    /// Whether files cannot be merged because one of them is damaged.
    is_damaged: bool,
}

impl Files {
    /// The index in these files, oldest first, with the files that they have replaced.
    pub(super) fn new(files: Vec<IndexFile>, replaced: Vec<IndexFile>) -> Self {
        Self {
            files: files.into_iter().map(Arc::new).collect(),
            replaced: replaced.into_iter().map(Arc::new).collect(),
            is_damaged: false,
        }
    }

    /// The last segment whose updates are in files; 0 if none is.
    pub(super) fn covered(&self) -> u64 {
        self.files.last().map_or(0, |file| file.covered.to)
    }

    /// The newest record of this key; `None` if it is removed or there is none.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        for file in self.files.iter().rev() {
            if let Some((_, value)) = file.get(key)? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    /// At most `limit` records with keys from `start` (inclusive) to `end` (exclusive). Updates in `recent` are newer
    /// than the files.
    pub(super) fn scan(
        &self,
        mut recent: Vec<Record>,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> io::Result<Vec<(Bytes, Bytes)>> {
        if newest_first {
            recent.reverse();
        }
        let mut sources: Vec<Box<dyn Iterator<Item = io::Result<Record>>>> = vec![Box::new(recent.into_iter().map(Ok))];
        for file in self.files.iter().rev() {
            sources.push(Box::new(file.range(start, Some(end), newest_first)?));
        }
        Merge::new(sources, newest_first)
            .filter_map(|record| match record {
                Ok((key, value)) => value.map(|value| Ok((key, value))),
                Err(error) => Some(Err(error)),
            })
            .take(limit)
            .collect()
    }

    /// Writes `recent`, the updates up to `segment`, to a file, and returns all files.
    pub(super) fn with(&self, folder: &Path, segment: u64, recent: Vec<Record>) -> io::Result<Self> {
        let covered = Covered {
            from: self.covered() + 1,
            to: segment,
        };
        let mut files = self.files.clone();
        let file = IndexFile::write(folder, covered, recent.into_iter().map(Ok))?;
        files.push(Arc::new(file));
        // A file is merged with the one before it once it is at least half as large. So there are few files, and
        // records are seldom rewritten.
        let mut from = files.len() - 1;
        while from > 0 && files[from].bytes() * 2 >= files[from - 1].bytes() {
            from -= 1;
        }
        let mut replaced = self.replaced.clone();
        let mut is_damaged = self.is_damaged;
        if from + 1 < files.len() && !is_damaged {
            match merge(folder, &files[from..], from == 0) {
                Ok(merged) => {
                    replaced.extend(files.drain(from..));
                    files.push(Arc::new(merged));
                }
                // A damaged file is rebuilt when the log is next opened after a machine failure. Until then, there are
                // more files.
                Err(error) => {
                    tracing::error!(folder = %folder.display(), %error, "index files of the log cannot be merged");
                    is_damaged = true;
                }
            }
        }
        Ok(Self {
            files,
            replaced,
            is_damaged,
        })
    }

    /// Whether there are so many replaced files that they should be removed even if nothing else requires a sync.
    pub(super) fn has_many_replaced(&self) -> bool {
        self.replaced.len() > MAX_REPLACED
    }

    /// Makes the files survive a machine failure, and removes those that they replace. Returns the removed files.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<Vec<Arc<IndexFile>>> {
        let mut any = false;
        for file in &self.files {
            any |= file.sync()?;
        }
        if any {
            sync_folder(folder)?;
        }
        for file in &self.replaced {
            file.remove()?;
        }
        Ok(self.replaced.clone())
    }

    /// Forgets files that were removed.
    pub(super) fn forget(&mut self, removed: &[Arc<IndexFile>]) {
        self.replaced
            .retain(|file| !removed.iter().any(|removed| Arc::ptr_eq(file, removed)));
    }
}

/// Merges files, which are given oldest first. Removals are dropped if there is no older file.
fn merge(folder: &Path, files: &[Arc<IndexFile>], is_oldest: bool) -> io::Result<IndexFile> {
    let covered = Covered {
        from: files.first().map_or(1, |file| file.covered.from),
        to: files.last().map_or(1, |file| file.covered.to),
    };
    let mut sources: Vec<Box<dyn Iterator<Item = io::Result<Record>>>> = Vec::new();
    for file in files.iter().rev() {
        sources.push(Box::new(file.range(&[], None, false)?));
    }
    let records = Merge::new(sources, false)
        .filter(|record| !is_oldest || record.as_ref().map_or(true, |(_, value)| value.is_some()));
    IndexFile::write(folder, covered, records)
}
