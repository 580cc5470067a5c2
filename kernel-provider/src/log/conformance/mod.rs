//! What every store must do, as tests that its own tests run.
//!
//! A store says with a [`Subject`] how it is opened, and runs the suite with
//! [`store_conformance!`](crate::store_conformance), which makes one test of each case:
//!
//! ```ignore
//! struct MySubject { /* … */ }
//!
//! impl kernel_provider::log::conformance::Subject for MySubject { /* … */ }
//!
//! kernel_provider::store_conformance!(Some(MySubject::new()));
//! ```
//!
//! Each case has a subject of its own, so all can run side by side. What only some stores meet, such as a disk that is
//! full, is theirs to test.

mod entries;
mod index;
mod logs;
mod model;

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use jupyter_protocol::{Channel, WireMessage};

pub use entries::*;
pub use index::*;
pub use logs::*;
pub use model::*;

use super::entry::encode_into;
use super::{Block, LogStore, NewEntry, Origin, Seq, StoreError, StoredLog};

/// A place where the store under test keeps logs: a folder, a server. At first there are none.
pub trait Subject: Send + Sync {
    /// Opens the store on the place. The suite drops the one before, and all of its logs, first.
    fn open(&self) -> Arc<dyn LogStore>;

    /// Whether what was appended is there when the store is opened again.
    fn persists(&self) -> bool {
        true
    }

    /// The size of a large message, in bytes.
    fn large(&self) -> usize {
        20 << 20
    }
}

/// What a store did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

/// How a case went.
pub type Outcome = Result<(), Failure>;

/// Makes one `#[test]` of each case of the suite.
///
/// The argument is an expression that gives `Some` new [`Subject`](crate::log::conformance::Subject), or `None` where the
/// tests cannot run here.
#[macro_export]
macro_rules! store_conformance {
    ($subject:expr) => {
        $crate::store_conformance!(@cases $subject;
            an_empty_log_has_nothing, an_unknown_log_is_not_made_by_looking, reads_from_every_entry,
            reads_no_more_than_it_is_asked_for, tells_of_a_hole_by_the_next_block, keeps_a_large_message,
            drops_the_oldest_bytes, drops_what_is_too_old, keeps_the_newest_block, finds_records_by_key,
            scans_records_in_order, stores_records_with_a_block, keeps_long_and_odd_keys, lists_what_it_keeps,
            removes_a_log_and_no_other, goes_on_in_the_same_epoch, reads_a_log_while_it_is_written,
            keeps_logs_apart, does_as_a_model_does,
        );
    };
    (@cases $subject:expr; $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                if let Some(subject) = $subject
                    && let Err(failure) = $crate::log::conformance::$case(&subject)
                {
                    panic!("{failure}");
                }
            }
        )*
    };
}

/// Fails the case unless both are the same.
macro_rules! same {
    ($left:expr, $right:expr, $($what:tt)+) => {
        match (&$left, &$right) {
            (left, right) if left == right => {}
            (left, right) => {
                let what = format!($($what)+);
                return Err($crate::log::conformance::Failure::new(format!("{what}: {left:?}, not {right:?}")));
            }
        }
    };
}
use same;

fn time(seconds: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds as i64, 0).unwrap_or_default()
}

/// The text that entry `n` has in it, of about this size.
fn text(n: u64, size: usize) -> String {
    format!("{n}:{}", format!("{n} abcdefghijklmnopqrstuvwxyz ").repeat(size / 28))
}

/// Entries of this size each, all appended at one time.
fn block(numbers: std::ops::RangeInclusive<u64>, size: usize, at: DateTime<Utc>) -> Block {
    let mut bytes = BytesMut::new();
    let (first, last) = (*numbers.start(), *numbers.end());
    for n in numbers {
        let part = |json: String| Bytes::from(json);
        let message = WireMessage::from_parts(
            [
                part(format!(r#"{{"msg_id":"{n}","msg_type":"stream"}}"#)),
                part("{}".to_owned()),
                part("{}".to_owned()),
                part(format!(r#"{{"text":"{}"}}"#, text(n, size))),
            ],
            [Bytes::from_static(b"\0\xffbuffer")],
        );
        let entry = NewEntry {
            origin: Origin::Kernel,
            channel: Channel::Iopub,
            session: "asker",
            message: &message,
        };
        encode_into(&mut bytes, &entry, at, Seq(n));
    }
    Block::new(Seq(first), Seq(last), bytes.freeze())
}

/// Reads all after the entry, a piece at a time, and checks each. Returns their numbers.
fn read_all(log: &dyn StoredLog, after: Seq, max_bytes: usize) -> Result<Vec<u64>, Failure> {
    let mut numbers = Vec::new();
    let mut position = after;
    loop {
        let blocks = log.read(position, max_bytes)?;
        if blocks.is_empty() {
            return Ok(numbers);
        }
        for block in blocks {
            if block.first() <= position {
                return Err(Failure::new(format!(
                    "after {position} a block from {} was read",
                    block.first()
                )));
            }
            for entry in block.entries() {
                let n = entry.seq().0;
                let message = entry.message();
                let content = String::from_utf8_lossy(message.content());
                same!(entry.session(), "asker", "entry {n}'s session");
                same!(
                    message.buffers(),
                    [Bytes::from_static(b"\0\xffbuffer")],
                    "entry {n}'s buffers"
                );
                let expected = format!(r#"{{"text":"{n}:"#);
                same!(
                    content.get(..expected.len()),
                    Some(&expected[..]),
                    "entry {n}'s content"
                );
                numbers.push(n);
            }
            position = block.last();
        }
    }
}

fn numbers(ranges: &[std::ops::RangeInclusive<u64>]) -> Vec<u64> {
    ranges.iter().cloned().flatten().collect()
}
