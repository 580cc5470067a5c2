//! Tests that every log store must pass.
//!
//! Implement [`Subject`] to describe how the store is opened. Run the suite with
//! [`store_conformance!`](crate::store_conformance), which creates one test per case:
//!
//! ```ignore
//! struct MySubject { /* … */ }
//!
//! impl kernel_log::conformance::Subject for MySubject { /* … */ }
//!
//! kernel_log::store_conformance!(Some(MySubject::new()));
//! ```
//!
//! Each case has its own subject, so the cases can run concurrently. Situations that only some stores can be in, such
//! as a full disk, have their own tests.

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

/// An isolated environment for the store under test, such as a folder or a server, initially without logs.
pub trait Subject: Send + Sync {
    /// Opens the store. Before each further call, the suite drops the previous store value and all handles of its logs.
    fn open(&self) -> Arc<dyn LogStore>;

    /// Whether data survives reopening the store.
    fn persists(&self) -> bool {
        true
    }

    /// Whether the store keeps the owners of logs.
    fn keeps_owners(&self) -> bool {
        true
    }

    /// Size in bytes of the large message that the suite stores.
    fn large(&self) -> usize {
        20 << 20
    }
}

/// Why a case failed.
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

/// The result of a case.
pub type Outcome = Result<(), Failure>;

/// Creates one `#[test]` for each case of the suite.
///
/// The argument is an expression that each test evaluates: `Some` of a new [`Subject`](crate::conformance::Subject), or
/// `None` to skip the test, for example because a server is missing.
#[macro_export]
macro_rules! store_conformance {
    ($subject:expr) => {
        $crate::store_conformance!(@cases $subject;
            an_empty_log_has_nothing, looking_up_an_unknown_log_creates_none, reads_from_every_entry,
            reads_no_more_than_it_is_asked_for, a_gap_shows_in_the_next_block, keeps_a_large_message,
            drops_the_oldest_bytes, drops_what_is_too_old, drops_what_is_acknowledged, keeps_the_newest_block, finds_records_by_key,
            scans_records_in_order, stores_records_with_a_block, keeps_long_and_odd_keys, lists_what_it_keeps,
            removes_a_log_and_no_other, keeps_the_owner_of_a_log, a_reopened_log_keeps_its_epoch, reads_a_log_while_it_is_written,
            keeps_logs_apart, behaves_like_the_model,
        );
    };
    (@cases $subject:expr; $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                if let Some(subject) = $subject
                    && let Err(failure) = $crate::conformance::$case(&subject)
                {
                    panic!("{failure}");
                }
            }
        )*
    };
}

/// Fails the case unless both values are equal.
macro_rules! same {
    ($left:expr, $right:expr, $($what:tt)+) => {
        match (&$left, &$right) {
            (left, right) if left == right => {}
            (left, right) => {
                let what = format!($($what)+);
                return Err($crate::conformance::Failure::new(format!("{what}: {left:?}, not {right:?}")));
            }
        }
    };
}
use same;

fn time(seconds: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds as i64, 0).unwrap_or_default()
}

/// The text of entry `n`, about `size` bytes long.
fn text(n: u64, size: usize) -> String {
    format!("{n}:{}", format!("{n} abcdefghijklmnopqrstuvwxyz ").repeat(size / 28))
}

/// A block of entries with these numbers and texts of about `size` bytes, all with the time `at`.
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
            session: "client",
            message: &message,
        };
        encode_into(&mut bytes, &entry, at, Seq(n));
    }
    Block::new((Seq(first), Seq(last)), (at, at), bytes.freeze())
}

/// Reads all entries after `after` with reads of about `max_bytes` bytes, checks them, and returns their numbers.
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
                    "reading after {position} returned a block that begins with {}",
                    block.first()
                )));
            }
            for entry in block.entries() {
                let n = entry.seq().0;
                let message = entry.message();
                let content = String::from_utf8_lossy(message.content());
                same!(entry.session(), "client", "entry {n}'s session");
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
