use jupyter_protocol::KernelId;

use super::{Failure, Outcome, Subject, block, numbers, read_all, same, text, time};
use crate::{Retention, Seq};

/// A new log is empty.
///
/// # Errors
/// [`Failure`] if it is not.
pub fn an_empty_log_has_nothing(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    same!(log.bounds()?, None, "bounds");
    same!(log.bytes(), 0, "bytes");
    same!(log.read(Seq::START, 1)?.len(), 0, "blocks");
    same!(log.index_get(b"key")?, None, "a record");
    same!(log.index_scan((b"", b"\xff"), 9, false)?.len(), 0, "records");
    same!(log.trim(&Retention::bytes(0))?, Seq::START, "the first entry");
    store.sync()?;
    Ok(())
}

/// Blocks of all sizes can be read from any entry on.
///
/// # Errors
/// [`Failure`] if an entry is missing, repeated, or changed.
pub fn reads_from_every_entry(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    let mut bytes = 0;
    for (range, size) in [
        (1..=1, 0),
        (2..=40, 10),
        (41..=42, 300_000),
        (43..=43, 5),
        (44..=60, 2_000),
    ] {
        let block = block(range, size, time(1));
        bytes += block.bytes().len() as u64;
        log.append(&block, &[])?;
    }
    same!(log.bounds()?, Some((Seq(1), Seq(60))), "bounds");
    same!(log.bytes(), bytes, "bytes");
    for after in 0..=61 {
        for max_bytes in [0, 1_000, 1 << 20] {
            let read = read_all(&*log, Seq(after), max_bytes)?;
            same!(read, numbers(&[after + 1..=60]), "after {after}");
        }
    }
    Ok(())
}

/// A read returns at least one block if there is any, and not much more than requested.
///
/// # Errors
/// [`Failure`] if it returns none or far more.
pub fn reads_no_more_than_it_is_asked_for(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    for n in 1..=100 {
        log.append(&block(n..=n, 10_000, time(1)), &[])?;
    }
    for (max_bytes, most) in [(0, 1), (1, 1), (50_000, 5)] {
        let blocks = log.read(Seq(7), max_bytes)?.len();
        if blocks == 0 || blocks > most {
            return Err(Failure::new(format!("{blocks} blocks for {max_bytes} bytes")));
        }
    }
    Ok(())
}

/// After a gap, a read returns the entries that follow.
///
/// # Errors
/// [`Failure`] if it returns something else.
pub fn a_gap_shows_in_the_next_block(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    log.append(&block(1..=10, 10, time(1)), &[])?;
    log.append(&block(21..=30, 10, time(1)), &[])?;
    same!(log.bounds()?, Some((Seq(1), Seq(30))), "bounds");
    for after in 0..10 {
        let read = read_all(&*log, Seq(after), 1)?;
        same!(read, numbers(&[after + 1..=10, 21..=30]), "after {after}");
    }
    for after in 10..=20 {
        same!(read_all(&*log, Seq(after), 1)?, numbers(&[21..=30]), "after {after}");
    }
    Ok(())
}

/// Messages of any size are stored whole.
///
/// # Errors
/// [`Failure`] if one was changed.
pub fn keeps_a_large_message(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    log.append(&block(1..=1, 10, time(1)), &[])?;
    log.append(&block(2..=2, subject.large(), time(1)), &[])?;
    log.append(&block(3..=3, 10, time(1)), &[])?;
    same!(read_all(&*log, Seq::START, 1)?, [1, 2, 3], "entries");
    let read = log.read(Seq(1), 1)?;
    let entry = read.first().and_then(|block| block.entries().next());
    let content = entry.map(|entry| entry.message().content().to_vec());
    let expected = format!(r#"{{"text":"{}"}}"#, text(2, subject.large()));
    if content.as_deref() != Some(expected.as_bytes()) {
        return Err(Failure::new("the large message was changed"));
    }
    Ok(())
}

/// The oldest blocks are dropped until the size limit is met, and no more than that.
///
/// # Errors
/// [`Failure`] if too many or too few are dropped.
pub fn drops_the_oldest_bytes(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    let size = block(1..=10, 5_000, time(1)).bytes().len() as u64;
    for n in 0..100 {
        log.append(&block(n * 10 + 1..=n * 10 + 10, 5_000, time(1)), &[])?;
    }
    same!(log.trim(&Retention::bytes(u64::MAX))?, Seq(1), "the first entry");
    let first = log.trim(&Retention::bytes(20 * size))?;
    // Digits in the text make sizes differ.
    if first < Seq(781) || first > Seq(821) || first.0 % 10 != 1 {
        return Err(Failure::new(format!(
            "the first kept entry is {first} after trimming 100 blocks to 20"
        )));
    }
    same!(log.bounds()?, Some((first, Seq(1_000))), "bounds");
    if log.bytes() > 21 * size {
        return Err(Failure::new(format!(
            "{} bytes are kept, but the limit is {}",
            log.bytes(),
            20 * size
        )));
    }
    for after in [0, 1, 500, first.0 - 1] {
        let read = read_all(&*log, Seq(after), 1 << 20)?;
        same!(read, numbers(&[first.0..=1_000]), "after {after}");
    }
    same!(
        log.trim(&Retention::bytes(20 * size))?,
        first,
        "the first entry, once more"
    );
    log.append(&block(1_001..=1_001, 10, time(1)), &[])?;
    same!(read_all(&*log, Seq(999), 1)?, [1_000, 1_001], "entries after that");
    Ok(())
}

/// Blocks whose entries are all too old are dropped.
///
/// # Errors
/// [`Failure`] if another block is dropped, or one of these is kept.
pub fn drops_what_is_too_old(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    for n in 1..=50 {
        log.append(&block(n..=n, 100, time(n)), &[])?;
    }
    let retention = Retention::bytes(u64::MAX);
    same!(
        log.trim(&retention.clone().since(time(0)))?,
        Seq(1),
        "the first entry when none is too old"
    );
    let first = log.trim(&retention.clone().since(time(30)))?;
    // A store that knows only when blocks begin keeps the previous block, which may end with recent entries.
    if first != Seq(29) && first != Seq(30) {
        return Err(Failure::new(format!(
            "the first kept entry is {first}, although the first recent entry is 30"
        )));
    }
    same!(
        read_all(&*log, Seq::START, 1 << 20)?,
        numbers(&[first.0..=50]),
        "entries"
    );
    // With both limits, the stricter one applies.
    let first = log.trim(&Retention::bytes(log.bytes() / 3).since(time(31)))?;
    if first < Seq(40) || first > Seq(46) {
        return Err(Failure::new(format!(
            "the first kept entry is {first} after trimming to a third of the bytes"
        )));
    }
    Ok(())
}

/// Blocks whose entries are all acknowledged are dropped, except the newest one.
///
/// # Errors
/// [`Failure`] if another block is dropped, or one of these is kept.
pub fn drops_what_is_acknowledged(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    same!(log.can_drop(Seq(1)), false, "whether an empty log has entries to drop");
    let all = Retention::bytes(u64::MAX);
    // The blocks are large enough for several files.
    for n in 0..50 {
        log.append(&block(n * 10 + 1..=n * 10 + 10, 50_000, time(n)), &[])?;
    }
    same!(
        log.can_drop(Seq::START),
        false,
        "whether entries can be dropped before an acknowledgement"
    );
    same!(log.trim(&all.clone().after(Seq::START))?, Seq(1), "the first entry");
    for (acknowledged, first) in [(9, 1), (10, 11), (5, 11), (234, 231), (499, 491), (500, 491)] {
        let retention = all.clone().after(Seq(acknowledged));
        same!(
            log.trim(&retention)?,
            Seq(first),
            "the first entry after {acknowledged}"
        );
        same!(log.can_drop(Seq(acknowledged)), false, "whether more can be dropped");
        same!(log.bounds()?, Some((Seq(first), Seq(500))), "bounds");
        same!(
            read_all(&*log, Seq::START, 1 << 20)?,
            numbers(&[first..=500]),
            "entries after {acknowledged}"
        );
    }
    log.append(&block(501..=510, 100, time(50)), &[])?;
    same!(log.trim(&all.after(Seq(1_000)))?, Seq(501), "the first entry after all");
    same!(read_all(&*log, Seq::START, 1)?, numbers(&[501..=510]), "entries");
    Ok(())
}

/// The newest block is always kept, because it has the newest number.
///
/// # Errors
/// [`Failure`] if the newest block is dropped, or another one is kept.
pub fn keeps_the_newest_block(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let id = KernelId::random();
    let log = store.open(id)?;
    for n in 0..20 {
        log.append(&block(n * 2 + 1..=n * 2 + 2, 1_000, time(1)), &[])?;
    }
    same!(log.trim(&Retention::bytes(0))?, Seq(39), "the first entry");
    same!(
        log.trim(&Retention::bytes(0).since(time(1_000)))?,
        Seq(39),
        "the first entry, once more"
    );
    same!(log.bounds()?, Some((Seq(39), Seq(40))), "bounds");
    drop(log);
    let log = store.open(id)?;
    same!(log.bounds()?, Some((Seq(39), Seq(40))), "bounds, opened again");
    same!(read_all(&*log, Seq::START, 1)?, [39, 40], "entries");
    Ok(())
}
