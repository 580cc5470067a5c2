//! Retention: dropping the oldest blocks of a log.

use std::fs::{self, File};
use std::io;

use super::super::StoreError;
use super::super::frame::{Frame, Head};
use super::super::segment::Header;
use super::{DiskLog, ReadState};
use crate::{Retention, Seq};

impl DiskLog {
    /// The head of the first block that is to be kept. The last block is always kept, because it has the newest number.
    pub(super) fn first_to_keep(&self, retention: &Retention) -> io::Result<Option<Head>> {
        let totals = self.state().totals;
        let oldest = retention.oldest.map_or(i64::MIN, |oldest| oldest.timestamp_micros());
        let has_room = |bytes_before: u64| totals.bytes.saturating_sub(bytes_before) <= retention.max_bytes;
        let is_needed = |head: &Head| {
            has_room(head.bytes_before) && head.last_time >= oldest && head.last > retention.acknowledged.0
        };
        // The blocks before this entry are dropped, except the last block.
        let start = totals.first().0.max(retention.acknowledged.next().0.min(totals.last));
        let views = self.views(start);
        for (index, view) in views.iter().enumerate() {
            // Skips a segment if its last block is to be dropped, which the header of the next segment shows.
            if let Some(next) = views.get(index + 1) {
                let next = Header::read(&mut File::open(next.segment.name.path(&self.path))?)?;
                if let Some(next) = next
                    && next.totals.last < totals.last
                    && (!has_room(next.totals.bytes) || next.totals.updated < oldest)
                {
                    continue;
                }
            }
            let Some(mut scan) = view.scan(self.id, &self.path, start)? else {
                continue;
            };
            while let Some((_, head)) = scan.next()? {
                if head.has_block() && head.first >= totals.first().0 && (head.last == totals.last || is_needed(&head))
                {
                    return Ok(Some(head));
                }
            }
        }
        Ok(None)
    }

    /// Whether a whole segment is acknowledged and does not contain the last block.
    pub(super) fn has_acknowledged_segment(&self, acknowledged: Seq) -> bool {
        let state = self.state();
        state
            .segments
            .get(1)
            .is_some_and(|next| next.name.first <= acknowledged.next().0.min(state.totals.last))
    }

    pub(super) fn trim_to(&self, head: &Head) -> Result<(), StoreError> {
        let mut slot = self.writer();
        self.expect_usable()?;
        if head.first <= self.state().totals.first().0 {
            // Another trim has dropped at least as much.
            return Ok(());
        }
        let (first, bytes_before) = (Seq(head.first), head.bytes_before);
        self.write(&mut slot, |_, salt| Frame::kept(first, bytes_before, salt), |_| {})?;
        let is_dropped = |state: &ReadState| {
            let next = state.segments.get(1)?;
            (next.name.first <= first.0).then(|| state.segments[0].name)
        };
        let failed = |error| self.failed("trim", &self.path, error);
        let mut synced = 0;
        loop {
            let (name, covered, has_recent) = {
                let state = self.state();
                let Some(name) = is_dropped(&state) else { return Ok(()) };
                (name, state.index.files.covered(), state.index.has_recent())
            };
            // Before a segment is removed, its index updates must be in an index file.
            if has_recent && name.number > covered {
                self.complete_segment(&mut slot, true)?;
                continue;
            }
            if synced != covered {
                self.sync_index()?;
                synced = covered;
            }
            match fs::remove_file(name.path(&self.path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => drop(self.state().segments.remove(0)),
            }
        }
    }
}
