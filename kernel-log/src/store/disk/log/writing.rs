//! Appending to a log.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use uuid::Uuid;

use super::super::StoreError;
use super::super::folder::sync_folder;
use super::super::frame::{Frame, Totals};
use super::super::index::Index;
use super::super::segment::{Header, Name, Offsets, Summary, Writer};
use super::{DiskLog, ReadState, Segment};
use crate::{Block, IndexUpdate, Seq};

/// Minimum size of a complete segment. If the index has many updates in memory, a segment of this size is completed.
const INDEX_SEGMENT_BYTES: u64 = 64 << 10;
/// How many entries are marked as skipped in advance, so that not every refused block needs a write.
const SKIPPED_AHEAD: u64 = 4096;

impl DiskLog {
    /// Creates the file of a segment with this number.
    fn create_segment(&self, number: u64) -> Result<(Name, Writer), StoreError> {
        let totals = self.state().totals;
        let name = Name {
            number,
            first: totals.last_number() + 1,
        };
        let header = Header {
            id: self.id,
            epoch: self.epoch,
            created: self.created,
            salt: Uuid::new_v4().as_u128() as u64,
            cycle: self.folder.cycle(),
            totals,
        };
        let path = name.path(&self.path);
        let writer = Writer::create(&path, header).map_err(|error| self.failed("write", &path, error))?;
        Ok((name, writer))
    }

    /// Begins a segment with this number.
    pub(super) fn begin_segment(&self, number: u64) -> Result<Writer, StoreError> {
        let (name, writer) = self.create_segment(number)?;
        self.show_segment(name, &writer);
        Ok(writer)
    }

    /// Makes a new segment visible to readers.
    fn show_segment(&self, name: Name, writer: &Writer) {
        let mut state = self.state();
        state
            .segments
            .push(Arc::new(Segment::with_salt(name, writer.header.salt)));
        state.offsets = Offsets::default();
        state.length = writer.length;
        state.is_ended = false;
        state.is_closed = false;
    }

    /// The segment to write to.
    fn current<'a>(&self, slot: &'a mut Option<Writer>) -> Result<&'a mut Writer, StoreError> {
        if slot.as_ref().is_some_and(Writer::is_broken) {
            *slot = None;
            self.state().is_ended = true;
        }
        let writer = match slot.take() {
            Some(writer) => writer,
            None => self.next_writer()?,
        };
        Ok(slot.insert(writer))
    }

    /// Continues the newest segment, or begins another one.
    fn next_writer(&self) -> Result<Writer, StoreError> {
        let (newest, length, is_ended, is_closed) = {
            let state = self.state();
            let newest = state.segments.last().map(|segment| segment.name);
            (newest, state.length, state.is_ended, state.is_closed)
        };
        let Some(name) = newest else {
            return self.begin_segment(1);
        };
        let path = name.path(&self.path);
        let failed = |error| self.failed("write", &path, error);
        let header = if is_ended {
            None
        } else {
            File::open(&path)
                .and_then(|mut file| Header::read(&mut file))
                .map_err(failed)?
        };
        let Some(header) = header else {
            let writer = self.begin_segment(name.number + 1)?;
            if is_closed {
                writer.sync().and_then(|()| sync_folder(&self.path)).map_err(failed)?;
            }
            return Ok(writer);
        };
        let mut writer = Writer::resume(&path, header, length).map_err(failed)?;
        if is_closed {
            // Synced before the next entry. Otherwise, the log could look closed after a failure of the machine.
            let salt = writer.header.salt;
            writer.append(&Frame::reopened(salt)).map_err(failed)?;
            writer.sync().map_err(failed)?;
            let mut state = self.state();
            state.length = writer.length;
            state.is_closed = false;
        }
        Ok(writer)
    }

    pub(super) fn expect_usable(&self) -> Result<(), StoreError> {
        self.folder.expect_open()?;
        if self.is_removed() {
            let error = io::Error::new(io::ErrorKind::NotFound, "the log was removed");
            return Err(self.failed("write", &self.path, error));
        }
        Ok(())
    }

    /// Appends the frame that `frame` makes from the totals and the segment's salt, and applies it to the state.
    pub(super) fn write(
        &self,
        slot: &mut Option<Writer>,
        frame: impl FnOnce(&Totals, u64) -> Frame,
        apply: impl FnOnce(&mut ReadState),
    ) -> Result<(), StoreError> {
        let writer = self.current(slot)?;
        let totals = self.state().totals;
        let frame = frame(&totals, writer.header.salt);
        let offset = writer.append(&frame).map_err(|error| {
            self.folder.failed_to_write();
            self.failed("append to", &self.path, error)
        })?;
        let mut state = self.state();
        state.totals.apply(&frame.head);
        state.offsets.note(&frame.head, offset);
        state.length = writer.length;
        apply(&mut state);
        drop(state);
        self.is_dirty.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn append_entries(&self, block: Option<&Block>, updates: &[IndexUpdate]) -> Result<(), StoreError> {
        let mut slot = self.writer();
        self.expect_usable()?;
        let updates_bytes: usize = updates
            .iter()
            .map(|update| update.key.len() + update.value.as_ref().map_or(0, Bytes::len))
            .sum();
        let bytes = block.map_or(0, Block::size) + updates_bytes;
        self.folder.expect_room(bytes as u64)?;
        self.write(
            &mut slot,
            |totals, salt| Frame::entries(block, updates, totals.bytes, salt),
            |state| state.index.update(updates),
        )?;
        let is_complete = {
            let state = self.state();
            let is_large = state.length >= self.folder.options().segment_bytes || state.index.is_large();
            is_large && state.length >= INDEX_SEGMENT_BYTES
        };
        // The frame is stored, so the append succeeds even if the segment cannot be completed and has to grow.
        if is_complete && let Err(error) = self.complete_segment(&mut slot, false) {
            tracing::warn!(kernel_id = %self.id, %error, "a segment of the log cannot be completed yet");
        }
        Ok(())
    }

    /// Marks entries up to this one, and [`SKIPPED_AHEAD`] further ones, as skipped. A failure is only logged.
    pub(super) fn mark_skipped(&self, last: Seq) {
        let mut slot = self.writer();
        if self.expect_usable().is_err() || last.0 <= self.state().totals.skipped {
            return;
        }
        let mark = last.0 + SKIPPED_AHEAD;
        if let Err(error) = self.write(&mut slot, |_, salt| Frame::skipped(mark, salt), |_| {}) {
            tracing::debug!(kernel_id = %self.id, %error, "refused entries cannot be marked as skipped");
        }
    }

    /// Completes the segment that is being written, and begins the next one. Writes the index of complete segments to a
    /// file if that is due or `with_index` is set.
    pub(super) fn complete_segment(&self, slot: &mut Option<Writer>, with_index: bool) -> Result<(), StoreError> {
        let complete = self.current(slot)?;
        let number = self.state().segments.last().map_or(0, |segment| segment.name.number);
        // If the next segment cannot be created, this one is continued.
        let (name, next) = self.create_segment(number + 1)?;
        self.write_summary(complete, false);
        self.show_segment(name, &next);
        *slot = Some(next);
        let (is_due, files, recent) = {
            let state = self.state();
            let is_due = with_index || state.index.is_due(number);
            let recent = if is_due { state.index.all_recent() } else { Vec::new() };
            (is_due, state.index.files.clone(), recent)
        };
        if !is_due {
            return Ok(());
        }
        let files = files
            .with(&self.path, number, recent)
            .map_err(|error| self.failed("write the index of", &self.path, error))?;
        let has_many_replaced = files.has_many_replaced();
        self.state().index = Index::new(files);
        if has_many_replaced { self.sync_index() } else { Ok(()) }
    }

    /// Writes a summary. If that fails, readers must scan the segment from its start.
    pub(super) fn write_summary(&self, writer: &mut Writer, is_closing: bool) {
        let summary = {
            let state = self.state();
            Summary {
                totals: state.totals,
                offsets: state.offsets.clone(),
            }
        };
        let written = writer.append(&summary.to_frame(is_closing, writer.header.salt));
        let mut state = self.state();
        state.length = writer.length;
        match written {
            Ok(_) => state.is_closed = is_closing,
            Err(error) => tracing::debug!(kernel_id = %self.id, %error, "a segment of the log has no summary"),
        }
    }
}
