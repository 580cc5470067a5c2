use bytes::Bytes;
use jupyter_protocol::KernelId;

use super::{Failure, Outcome, Subject, block, same, time};
use crate::{IndexUpdate, Seq, StoredLog};

fn scan(log: &dyn StoredLog, keys: (&[u8], &[u8]), limit: usize, newest_first: bool) -> Result<Vec<String>, Failure> {
    let records = log.index_scan(keys, limit, newest_first)?;
    Ok(records
        .into_iter()
        .map(|(key, value)| format!("{}={}", key.escape_ascii(), value.escape_ascii()))
        .collect())
}

/// A record has its latest value until it is removed.
///
/// # Errors
/// [`Failure`] if a lookup returns another value.
pub fn finds_records_by_key(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    log.index_put(&[
        IndexUpdate::put("a", "1"),
        IndexUpdate::put("b", ""),
        IndexUpdate::remove("c"),
    ])?;
    same!(log.index_get(b"a")?, Some(Bytes::from("1")), "a");
    same!(log.index_get(b"b")?, Some(Bytes::new()), "b, which is empty");
    same!(log.index_get(b"c")?, None, "c");
    log.index_put(&[IndexUpdate::remove("b"), IndexUpdate::put("a", "2")])?;
    same!(log.index_get(b"a")?, Some(Bytes::from("2")), "a, put again");
    same!(log.index_get(b"b")?, None, "b, removed");
    log.index_put(&[IndexUpdate::put("b", "3")])?;
    same!(log.index_get(b"b")?, Some(Bytes::from("3")), "b, put after its removal");
    Ok(())
}

/// Scans return records in key order or in reverse, up to the limit.
///
/// # Errors
/// [`Failure`] if they do not.
pub fn scans_records_in_order(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    let mut updates = vec![IndexUpdate::put("d/x", "x"), IndexUpdate::put("f", "f")];
    for n in [5_u64, 300, 1, 70_000, 2] {
        let key = [b"e/", &n.to_be_bytes()[..]].concat();
        updates.push(IndexUpdate::put(key, n.to_string()));
    }
    // A store may not be able to sort long keys by itself.
    for n in ["b", "d", "a", "c"] {
        updates.push(IndexUpdate::put(format!("g/{}{n}", "x".repeat(300)), n));
    }
    log.index_put(&updates)?;
    let values = |keys: (&[u8], &[u8]), limit, newest_first| -> Result<Vec<String>, Failure> {
        let records = scan(&*log, keys, limit, newest_first)?;
        Ok(records
            .iter()
            .filter_map(|record| record.rsplit('=').next().map(str::to_owned))
            .collect())
    };
    same!(
        values((b"e/", b"e0"), 9, false)?,
        ["1", "2", "5", "300", "70000"],
        "all"
    );
    same!(values((b"e/", b"e0"), 2, false)?, ["1", "2"], "the first two");
    same!(values((b"e/", b"e0"), 2, true)?, ["70000", "300"], "the last two");
    same!(values((b"e/", b"e0"), 0, true)?.len(), 0, "none");
    let from = [b"e/", &2_u64.to_be_bytes()[..]].concat();
    let to = [b"e/", &300_u64.to_be_bytes()[..]].concat();
    same!(values((&from, &to), 9, false)?, ["2", "5"], "from 2 and before 300");
    same!(values((&to, &from), 9, false)?.len(), 0, "an empty range");
    same!(values((b"", b"\xff"), 99, false)?.len(), 11, "all records");
    same!(
        values((b"g/", b"g0"), 2, false)?,
        ["a", "b"],
        "the first two with long keys"
    );
    same!(
        values((b"g/", b"g0"), 2, true)?,
        ["d", "c"],
        "the last two with long keys"
    );
    Ok(())
}

/// Records that come with a block are stored with it.
///
/// # Errors
/// [`Failure`] if they are not.
pub fn stores_records_with_a_block(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let id = KernelId::random();
    let log = store.open(id)?;
    log.append(
        &block(1..=2, 10, time(1)),
        &[IndexUpdate::put("k", "1"), IndexUpdate::put("l", "1")],
    )?;
    log.append(
        &block(3..=3, 10, time(1)),
        &[IndexUpdate::put("k", "3"), IndexUpdate::remove("l")],
    )?;
    let large: Vec<_> = (0..500)
        .map(|n| IndexUpdate::put(format!("n{n:03}"), vec![b'v'; 500]))
        .collect();
    log.append(&block(4..=4, 1_200_000, time(1)), &large)?;
    let check = |log: &dyn StoredLog| -> Outcome {
        same!(log.bounds()?, Some((Seq(1), Seq(4))), "bounds");
        same!(scan(log, (b"k", b"m"), 9, false)?, ["k=3"], "records");
        same!(log.index_scan((b"n", b"o"), 1_000, false)?.len(), 500, "many records");
        Ok(())
    };
    check(&*log)?;
    drop(log);
    if subject.persists() {
        drop(store);
        check(&*subject.open().open(id)?)?;
    }
    Ok(())
}

/// A key may consist of any bytes, up to 65,535.
///
/// # Errors
/// [`Failure`] if a lookup finds the wrong record, or a scan is out of order.
pub fn keeps_long_and_odd_keys(subject: &dyn Subject) -> Outcome {
    let store = subject.open();
    let log = store.open(KernelId::random())?;
    let mut keys: Vec<Vec<u8>> = [&b"."[..], b"*", b"> ", b"\0", b"\xff\xfe", b"e", b"hh"]
        .map(<[u8]>::to_vec)
        .into();
    for (length, tail) in [
        (199, 0),
        (200, 0),
        (201, 0),
        (201, 1),
        (300, 0),
        (300, 1),
        (65_535, 0),
        (65_535, 1),
    ] {
        let mut key = vec![b'x'; length];
        if let Some(last) = key.last_mut() {
            *last = tail;
        }
        keys.push(key);
    }
    for (n, key) in keys.iter().enumerate() {
        log.index_put(&[IndexUpdate::put(key.clone(), n.to_string())])?;
    }
    for (n, key) in keys.iter().enumerate() {
        let record = log.index_get(key)?;
        same!(record, Some(Bytes::from(n.to_string())), "key {n}");
    }
    keys.sort();
    let scanned = log.index_scan((b"", b"\xff\xff"), 99, false)?;
    let scanned: Vec<_> = scanned.iter().map(|(key, _)| key.to_vec()).collect();
    if scanned != keys {
        return Err(Failure::new("the keys are not in ascending order"));
    }
    for (n, key) in keys.iter().enumerate() {
        log.index_put(&[IndexUpdate::remove(key.clone())])?;
        same!(
            log.index_scan((b"", b"\xff\xff"), 99, true)?.len(),
            keys.len() - n - 1,
            "records left"
        );
    }
    Ok(())
}
