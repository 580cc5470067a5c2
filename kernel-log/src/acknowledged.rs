//! How much of a log was acknowledged.

use std::collections::VecDeque;

use super::Seq;

/// Maximum number of marks. Beyond that, neighbouring marks are merged.
const MARKS: usize = 1_024;

/// The acknowledged position of a log, and the number of bytes after it. The number of bytes is known only at marks.
/// Each block ends with a mark, unless very many blocks are unacknowledged: then several blocks share one.
#[derive(Debug)]
pub(super) struct Acknowledged {
    position: Seq,
    /// Bytes up to the last mark that was acknowledged.
    acknowledged: u64,
    /// Bytes up to the end of the last block.
    total: u64,
    /// Marks after `position`: the last entry before the mark, and the bytes up to it.
    marks: VecDeque<(Seq, u64)>,
    /// Consecutive blocks with at most this many bytes in total share a mark.
    spacing: u64,
}

impl Acknowledged {
    /// The state of a log whose entries up to `last` are all unacknowledged. Until [`begin`](Self::begin), it has at
    /// most one mark.
    pub(super) fn new(last: Seq, bytes: u64) -> Self {
        Self {
            position: Seq::START,
            acknowledged: 0,
            total: bytes,
            marks: VecDeque::from_iter((bytes > 0).then_some((last, bytes))),
            spacing: u64::MAX,
        }
    }

    /// Starts marking blocks, which is only needed once entries are acknowledged.
    pub(super) fn begin(&mut self) {
        if self.spacing == u64::MAX {
            self.spacing = 0;
        }
    }

    /// The last entry that was acknowledged; [`Seq::START`] if none was.
    pub(super) fn position(&self) -> Seq {
        self.position
    }

    /// Bytes after the position. If the position is between two marks, this counts from the first of them.
    pub(super) fn bytes_after(&self) -> u64 {
        self.total - self.acknowledged
    }

    /// Counts a block of this size that ends with `last`.
    pub(super) fn appended(&mut self, last: Seq, bytes: u64) {
        self.total += bytes;
        let before = self.marks.len().checked_sub(2).and_then(|index| self.marks.get(index));
        let before = before.map_or(self.acknowledged, |(_, bytes)| *bytes);
        match self.marks.back_mut() {
            Some(mark) if self.total - before <= self.spacing => *mark = (last, self.total),
            _ => self.marks.push_back((last, self.total)),
        }
        if self.marks.len() > MARKS {
            self.merge();
        }
    }

    /// Acknowledges the entries up to `seq`. Returns whether the position moved.
    pub(super) fn acknowledge(&mut self, seq: Seq) -> bool {
        if seq <= self.position {
            return false;
        }
        self.position = seq;
        while let Some((last, bytes)) = self.marks.front()
            && *last <= seq
        {
            self.acknowledged = *bytes;
            self.marks.pop_front();
        }
        if self.marks.is_empty() {
            self.spacing = 0;
        }
        true
    }

    /// Merges marks that are close to each other.
    fn merge(&mut self) {
        self.spacing = (self.bytes_after() / (MARKS as u64 / 4)).max(1);
        let mut before = self.acknowledged;
        let mut merged: VecDeque<(Seq, u64)> = VecDeque::with_capacity(MARKS);
        for (last, bytes) in std::mem::take(&mut self.marks) {
            match merged.back_mut() {
                Some(mark) if bytes - before <= self.spacing => *mark = (last, bytes),
                _ => {
                    before = merged.back().map_or(before, |(_, bytes)| *bytes);
                    merged.push_back((last, bytes));
                }
            }
        }
        self.marks = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_exact_while_there_are_few_blocks() {
        let mut acknowledged = Acknowledged::new(Seq(9), 900);
        acknowledged.appended(Seq(10), 100);
        acknowledged.begin();
        assert_eq!(acknowledged.bytes_after(), 1_000);
        acknowledged.appended(Seq(20), 500);
        assert!(acknowledged.acknowledge(Seq(9)));
        assert_eq!(acknowledged.bytes_after(), 1_500);
        assert!(acknowledged.acknowledge(Seq(10)));
        assert_eq!(acknowledged.bytes_after(), 500);
        assert!(!acknowledged.acknowledge(Seq(7)));
        assert_eq!((acknowledged.position(), acknowledged.bytes_after()), (Seq(10), 500));
        assert!(acknowledged.acknowledge(Seq(20)));
        assert_eq!(acknowledged.bytes_after(), 0);
        acknowledged.appended(Seq(21), 7);
        assert_eq!(acknowledged.bytes_after(), 7);
    }

    #[test]
    fn many_blocks_take_little_memory_and_bytes_stay_nearly_exact() {
        let mut acknowledged = Acknowledged::new(Seq::START, 0);
        acknowledged.begin();
        let blocks = 100_000;
        for n in 1..=blocks {
            acknowledged.appended(Seq(n), 300);
            assert!(acknowledged.marks.len() <= MARKS);
        }
        let all = blocks * 300;
        assert_eq!(acknowledged.bytes_after(), all);
        for n in (0..=blocks).step_by(777) {
            acknowledged.acknowledge(Seq(n));
            let expected = (blocks - n) * 300;
            let bytes = acknowledged.bytes_after();
            assert!(
                bytes >= expected && bytes - expected <= all / 100,
                "{bytes}, not {expected}"
            );
        }
        acknowledged.acknowledge(Seq(blocks));
        assert_eq!((acknowledged.bytes_after(), acknowledged.spacing), (0, 0));
    }
}
