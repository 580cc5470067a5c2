//! Invariants checked at the end of a simulation.

use std::collections::{BTreeMap, BTreeSet};

use kernel_log::{Entry, Log, Origin, ReadError, Seq};
use kernel_manager::ExecutionFilter;
use kernel_manager::fold::Fold;

use super::world::World;

/// Reads all entries that a new reader receives.
async fn read_all(log: &Log) -> BTreeMap<u64, Entry> {
    let mut entries = BTreeMap::new();
    let mut reader = log.reader(Seq::START);
    while reader.position() < log.head() {
        match reader.next().await {
            Ok(Some(block)) => entries.extend(block.entries().map(|entry| (entry.seq().0, entry))),
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    entries
}

fn show(fold: &Fold) -> String {
    serde_json::to_string(&fold.outputs()).unwrap()
}

/// Checks that the log has every entry that a reader received or the store accepted, and that its index is correct.
pub(crate) async fn log(world: &World, log: &Log) {
    let entries = read_all(log).await;
    for entry in entries.values() {
        world.saw(entry.seq().0, entry.channel(), &entry.message());
    }
    let earliest = log.earliest().0;
    for seq in world.seen() {
        assert!(
            entries.contains_key(&seq) || seq < earliest || world.disk.has_refused(seq),
            "entry {seq} was read and is missing"
        );
    }
    for seq in earliest..=log.head().0 {
        assert!(
            entries.contains_key(&seq) || world.disk.has_refused(seq),
            "entry {seq} is missing, and was never refused"
        );
    }
    for (session, position) in &*world.positions.borrow() {
        assert_eq!(*position, log.head().0, "{session} has not read all");
    }
    let executions = kernel_manager::Executions::of(log.clone());
    let page = executions
        .list(&ExecutionFilter::default(), None, usize::MAX)
        .await
        .unwrap();
    let mut indexed = BTreeSet::new();
    for execution in page.executions {
        let at = |seq: Seq, msg_type: &str, parent: bool| {
            let Some(entry) = entries.get(&seq.0) else {
                assert!(
                    seq.0 < earliest || world.disk.has_refused(seq.0),
                    "entry {seq} is indexed and missing"
                );
                return;
            };
            let message = entry.message();
            assert_eq!(message.header_ref().unwrap().msg_type, msg_type, "entry {seq}");
            let id = if parent {
                message.parent_ref().unwrap().msg_id.to_string()
            } else {
                message.header_ref().unwrap().msg_id.to_string()
            };
            assert_eq!(id, execution.msg_id(), "entry {seq}");
        };
        at(execution.request, "execute_request", false);
        if let Some(reply) = execution.reply {
            at(reply, "execute_reply", true);
        }
        if let Some(idle) = execution.idle {
            at(idle, "status", true);
        }
        let runs = world.runs.borrow().get(execution.msg_id()).copied().unwrap_or(0);
        // A request that the disk refused is only in the process's memory, so it may run again after a crash.
        assert!(
            runs <= 1 || world.disk.has_refused_request(execution.msg_id()),
            "{} runs {runs} times",
            execution.msg_id()
        );
        let screen = world.screens.borrow().get(execution.msg_id()).map(show);
        // If an answer came too late for the kernel, the client still shows it, so the client's outputs may differ from
        // the log's.
        let answered = !world.unanswered.borrow().contains(execution.msg_id());
        if let Some(screen) = screen.filter(|_| runs == 1 && answered) {
            let folded = executions.outputs(&execution).await.unwrap();
            if folded.complete {
                assert_eq!(screen, show(&folded.fold), "the screen of {execution:?}");
            }
        }
        assert!(
            execution.ended.is_some(),
            "{} has not ended: {execution:?}",
            execution.msg_id()
        );
        indexed.insert(execution.request.0);
    }
    let mut asked = BTreeSet::new();
    for entry in entries.values().filter(|entry| entry.origin() == Origin::Client) {
        let message = entry.message();
        let header = message.header_ref().unwrap();
        assert!(
            asked.insert(header.msg_id.to_string()),
            "{} is logged twice",
            header.msg_id
        );
        if header.msg_type == "execute_request" {
            assert!(
                indexed.contains(&entry.seq().0),
                "execution {} is not indexed",
                entry.seq()
            );
        }
    }
}
