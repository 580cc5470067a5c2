use std::sync::atomic::{AtomicBool, Ordering};

use chrono::Utc;
use jupyter_protocol::KernelId;

use super::{Failure, Outcome, Subject, block, numbers, read_all, same, time};
use crate::{IndexUpdate, LogStore, Retention, Seq};

/// Looking up a log does not create it.
///
/// # Errors
/// [`Failure`] if it does.
pub fn looking_up_an_unknown_log_creates_none(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let id = KernelId::random();
    same!(store.get(id)?.is_some(), false, "whether the log exists");
    same!(store.list()?.len(), 0, "number of logs");
    let epoch = store.open(id)?.epoch();
    same!(store.get(id)?.map(|log| log.epoch()), Some(epoch), "the log's epoch");
    Ok(())
}

/// The list describes each log.
///
/// # Errors
/// [`Failure`] if a description is wrong.
pub fn lists_what_it_keeps(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let begun = Utc::now() - chrono::Duration::seconds(60);
    let (empty, full) = (KernelId::random(), KernelId::random());
    store.open(empty)?;
    let log = store.open(full)?;
    for n in 1..=10 {
        log.append(&block(n * 3 - 2..=n * 3, 1_000, time(n)), &[])?;
    }
    let first = log.trim(&Retention::bytes(log.bytes() / 2))?;
    let mut list = store.list()?;
    list.sort_by_key(|info| info.id != empty);
    let [none, some] = &list[..] else {
        return Err(Failure::new(format!("{} logs are listed, not 2", list.len())));
    };
    same!(
        (none.first, none.last, none.bytes),
        (Seq(1), Seq(0), 0),
        "first, last and bytes of the empty log"
    );
    same!(none.updated, none.created, "last change of the empty log");
    same!(
        (some.first, some.last, some.bytes),
        (first, Seq(30), log.bytes()),
        "first, last and bytes of the full log"
    );
    same!(some.updated, time(10), "last change of the full log");
    same!(
        (some.id, some.epoch),
        (full, log.epoch()),
        "id and epoch of the full log"
    );
    if none.created < begun || none.created > Utc::now() {
        return Err(Failure::new(format!(
            "the creation time {} is more than a minute before this case, or in the future",
            none.created
        )));
    }
    Ok(())
}

/// A removed log is gone with its index; a new log of the same kernel has another epoch.
///
/// # Errors
/// [`Failure`] if something is left, or another log is affected.
pub fn removes_a_log_and_no_other(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let (id, other) = (KernelId::random(), KernelId::random());
    for id in [id, other] {
        let log = store.open(id)?;
        log.append(&block(1..=5, 100, time(1)), &[IndexUpdate::put("k", "v")])?;
    }
    let epoch = store.open(id)?.epoch();
    store.remove(id)?;
    store.remove(id)?;
    same!(store.get(id)?.is_some(), false, "whether the removed log exists");
    same!(
        store.list()?.iter().map(|info| info.id).collect::<Vec<_>>(),
        [other],
        "logs"
    );
    let log = store.open(id)?;
    same!(log.epoch() == epoch, false, "whether the new log has the old epoch");
    same!(log.bounds()?, None, "bounds of the new log");
    same!(log.index_get(b"k")?, None, "a record of the removed log");
    let other = store.open(other)?;
    same!(
        read_all(&*other, Seq::START, 1)?,
        numbers(&[1..=5]),
        "the other log's entries"
    );
    same!(
        other.index_get(b"k")?.is_some(),
        true,
        "whether the other log's record exists"
    );
    Ok(())
}

/// The first owner of a log stays its owner, until the log is removed.
///
/// # Errors
/// [`Failure`] if the list has another owner.
pub fn keeps_the_owner_of_a_log(subject: &dyn Subject) -> Outcome {
    if !subject.keeps_owners() {
        return Ok(());
    }
    let owner = |store: &dyn LogStore, id| -> Result<Option<String>, Failure> {
        let listed = store.list()?.into_iter().find(|info| info.id == id);
        let listed = listed.ok_or_else(|| Failure::new("the log is not listed"))?;
        same!(store.info(id)?, Some(listed.clone()), "information about one log");
        Ok(listed.owner)
    };
    let store = subject.open();
    let [none, new, old] = [(); 3].map(|()| KernelId::random());
    same!(store.info(none)?, None, "information about a log that does not exist");
    store.open(none)?;
    store.open_for(new, "Ann Ümlaut <ann@example.com>")?;
    let log = store.open(old)?;
    log.append(&block(1..=5, 100, time(1)), &[IndexUpdate::put("k", "v")])?;
    let epoch = log.epoch();
    same!(store.open_for(old, "bob")?.epoch(), epoch, "epoch");
    drop(log);
    let check = |store: &dyn LogStore| -> Outcome {
        same!(owner(store, none)?, None, "owner of a log without one");
        let ann = Some("Ann Ümlaut <ann@example.com>".to_owned());
        same!(owner(store, new)?, ann, "owner");
        same!(owner(store, old)?, Some("bob".to_owned()), "owner that was set later");
        let log = store.open_for(old, "eve")?;
        same!(
            owner(store, old)?,
            Some("bob".to_owned()),
            "owner after opening for another one"
        );
        same!(log.epoch(), epoch, "epoch");
        same!(read_all(&*log, Seq::START, 1)?, numbers(&[1..=5]), "entries");
        Ok(())
    };
    check(&*store)?;
    let store = if subject.persists() {
        drop(store);
        let store = subject.open();
        check(&*store)?;
        store
    } else {
        store
    };
    store.remove(old)?;
    store.open(old)?;
    same!(owner(&*store, old)?, None, "owner of a new log");
    Ok(())
}

/// The epoch, the bounds, the entries and the index survive reopening the store.
///
/// # Errors
/// [`Failure`] if something is lost.
pub fn a_reopened_log_keeps_its_epoch(subject: &dyn Subject) -> Outcome {
    if !subject.persists() {
        return Ok(());
    }
    let id = KernelId::random();
    let mut before = None;
    let mut first = 1;
    for round in 0..5 {
        let store = subject.open();
        let log = store.open(id)?;
        if let Some(before) = before {
            same!(
                (log.epoch(), log.bounds()?, log.bytes()),
                before,
                "epoch, bounds and bytes in round {round}"
            );
            same!(
                read_all(&*log, Seq::START, 1)?,
                numbers(&[first..=round * 20]),
                "entries"
            );
            let record = log.index_get(format!("k{}", round - 1).as_bytes())?;
            same!(record.is_some(), true, "whether the record exists in round {round}");
        }
        for n in 0..4 {
            let numbers = round * 20 + n * 5 + 1..=round * 20 + n * 5 + 5;
            log.append(&block(numbers, 3_000, time(round)), &[])?;
        }
        log.index_put(&[IndexUpdate::put(format!("k{round}"), "v")])?;
        if round == 2 {
            first = log.trim(&Retention::bytes(log.bytes() / 2))?.0;
        }
        before = Some((log.epoch(), log.bounds()?, log.bytes()));
    }
    Ok(())
}

/// A reader that runs concurrently with appends reads whole entries in order.
///
/// # Errors
/// [`Failure`] if an entry is missing or out of order.
pub fn reads_a_log_while_it_is_written(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| -> Outcome {
            for n in 0..200 {
                let key = format!("{n}");
                log.append(
                    &block(n * 5 + 1..=n * 5 + 5, 500, time(1)),
                    &[IndexUpdate::put(key, "v")],
                )?;
            }
            done.store(true, Ordering::SeqCst);
            Ok(())
        });
        let reading = (|| {
            let mut position = 0;
            loop {
                let last_look = done.load(Ordering::SeqCst) || writer.is_finished();
                let read = read_all(&*log, Seq(position), 10_000)?;
                let end = position + read.len() as u64;
                same!(read, numbers(&[position + 1..=end]), "entries after {position}");
                position = end;
                if last_look {
                    same!(position, 1_000, "the last entry");
                    return Ok(());
                }
            }
        })();
        let writing = writer.join().map_err(|_| Failure::new("the writer panicked"))?;
        writing.and(reading)
    })
}

/// Logs that are written concurrently are independent.
///
/// # Errors
/// [`Failure`] if they are not.
pub fn keeps_logs_apart(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    std::thread::scope(|threads| {
        let writers: Vec<_> = (1..=4_u64)
            .map(|count| {
                let store = &store;
                threads.spawn(move || -> Outcome {
                    let log = store.open(KernelId::random())?;
                    for n in 1..=count * 20 {
                        let update = IndexUpdate::put("n", n.to_string());
                        log.append(&block(n..=n, 100, time(1)), &[update])?;
                    }
                    same!(
                        read_all(&*log, Seq::START, 1_000)?,
                        numbers(&[1..=count * 20]),
                        "entries"
                    );
                    let record = log.index_get(b"n")?;
                    same!(
                        record.as_deref(),
                        Some((count * 20).to_string().as_bytes()),
                        "the record"
                    );
                    Ok(())
                })
            })
            .collect();
        for writer in writers {
            writer.join().map_err(|_| Failure::new("a writer panicked"))??;
        }
        same!(store.list()?.len(), 4, "logs");
        Ok(())
    })
}
