//! Detects whether the machine went down while logs were written.
//!
//! Unsynced entries are lost then, although readers have seen them. If their numbers were reused, a reader that
//! reconnects would mistake the new entries for them. So numbering continues after a gap, which readers see.

use std::fs;

use jupyter_protocol::KernelId;
use memchr::memmem;

use super::StoreError;
use super::database::Open;
use super::log::{last_of, lost, lost_key};
use crate::{Block, Origin};

/// Key in the list of logs for the boot id of the writing process.
const KEY: &[u8] = b"boot";
/// The value after a clean close.
const CLEAN: &[u8] = b"clean";
/// More entries than can be appended and unsynced. A sync is due every 50 ms, and the disk may be slow.
const HOLE: u64 = 1 << 20;

/// Linux's boot id. Other systems have none.
fn boot() -> Option<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id").ok()
}

/// Called before anything is written.
pub(super) fn begin(open: &Open) -> Result<(), StoreError> {
    let failed = |error| open.failed("note that the logs are written", error);
    let Some(boot) = boot() else { return Ok(()) };
    let before = open.logs.get(KEY).map_err(failed)?;
    let mut batch = open.database.batch();
    if before.is_some_and(|before| *before != *boot && *before != *CLEAN) {
        tracing::warn!("the machine went down while the logs were written; entries that were not on disk are lost");
        for guard in open.logs.iter() {
            let key = guard.key().map_err(failed)?;
            let Ok(id) = uuid::Uuid::from_slice(&key).map(KernelId::from) else {
                continue;
            };
            match first_after_the_hole(open, id) {
                Ok(Some(seq)) => batch.insert(&open.logs, lost_key(id), seq.to_be_bytes()),
                Ok(None) => {}
                Err(error) => tracing::error!(kernel_id = %id, %error, "missing entries of a log cannot be recorded"),
            }
        }
    }
    batch.insert(&open.logs, KEY, boot);
    batch.commit().map_err(failed)
}

/// Called after everything is written.
pub(super) fn end(open: &Open) -> Result<(), StoreError> {
    open.logs
        .insert(KEY, CLEAN)
        .map_err(|error| open.failed("note that the logs are whole", error))?;
    open.sync()
}

/// The entry up to which entries may be lost; `None` if none are.
fn first_after_the_hole(open: &Open, id: KernelId) -> Result<Option<u64>, StoreError> {
    let last = last_of(&open.blocks(id)?, id)?;
    let ended = last.as_ref().is_some_and(|last| tells_of_the_end(&last.block));
    let last = last.map_or(0, |last| last.block.last().0);
    Ok((!ended).then_some(last.max(lost(open, id)?.0) + HOLE))
}

/// Whether the last entry announces the kernel's death, after which nothing was written.
fn tells_of_the_end(block: &Block) -> bool {
    block.entries().last().is_some_and(|entry| {
        entry.origin() == Origin::Lifecycle && memmem::find(entry.message().content(), b"\"dead\"").is_some()
    })
}

#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use chrono::Utc;
    use jupyter_protocol::Channel;
    use jupyter_protocol::content::Content;
    use jupyter_protocol::message::Message;

    use super::*;
    use crate::pending_blocks::PendingBlocks;
    use crate::{LogStore, NewEntry, Seq};

    fn block(first: u64, state: &str) -> Block {
        let content = format!(r#"{{"execution_state":"{state}"}}"#);
        let message = Message::new(Content::parse("status", content.as_bytes()), "test").to_wire();
        let entry = NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session: "",
            message: &message,
        };
        let mut waiting = PendingBlocks::after(Seq(first - 1));
        waiting.push(&entry, Utc::now());
        waiting.take().unwrap().0.unwrap()
    }

    fn last(folder: &Path, id: KernelId) -> u64 {
        let log = super::super::FjallStore::open(folder).unwrap().open(id).unwrap();
        log.bounds().unwrap().map_or(0, |(_, last)| last.0)
    }

    #[test]
    fn numbers_are_not_given_twice_where_the_machine_went_down() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, ended) = (KernelId::random(), KernelId::random());
        {
            let store = super::super::FjallStore::open(folder.path()).unwrap();
            store.open(runs).unwrap().append(&block(1, "idle"), &[]).unwrap();
            store.open(ended).unwrap().append(&block(1, "dead"), &[]).unwrap();
        }
        assert_eq!(last(folder.path(), runs), 1, "it was closed in order");
        {
            let open = Open::new(folder.path()).unwrap();
            open.logs.insert(KEY, boot().unwrap()).unwrap();
        }
        assert_eq!(last(folder.path(), runs), 1, "only the process was killed");
        for went_down in 1..=2 {
            let open = Open::new(folder.path()).unwrap();
            open.logs.insert(KEY, "another boot").unwrap();
            drop(open);
            assert_eq!(last(folder.path(), runs), 1 + went_down * HOLE);
            assert_eq!(last(folder.path(), runs), 1 + went_down * HOLE, "told once");
            assert_eq!(last(folder.path(), ended), 1, "nothing came after its end");
        }
    }
}
