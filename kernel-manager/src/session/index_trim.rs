//! Removes index records of entries that retention dropped.

use bytes::Bytes;
use kernel_log::{IndexUpdate, Log, Seq, StoreError};

use super::execution_record::ExecutionRecord;
use super::index_keys as keys;

/// Records per read.
const PAGE: usize = 1_024;

/// Removes the index records of entries before the log's earliest one.
pub(crate) async fn trim_index(log: &Log) -> Result<(), StoreError> {
    let earliest = log.earliest();
    if earliest <= Seq(1) {
        return Ok(());
    }
    let gone = (keys::EXECUTIONS.0, keys::execution(earliest));
    each_page(log, gone, |key, json, updates| {
        match serde_json::from_slice::<ExecutionRecord>(json) {
            Ok(record) if record.ended.is_none() || record.last >= earliest => return,
            Ok(record) => updates.push(IndexUpdate::remove(keys::request(record.msg_id()))),
            Err(_) => {}
        }
        updates.push(IndexUpdate::remove(key.clone()));
    })
    .await?;
    let gone = (keys::OTHER_REQUESTS.0, keys::other_request(earliest));
    each_page(log, gone, |key, msg_id, updates| {
        if let Ok(msg_id) = std::str::from_utf8(msg_id) {
            updates.push(IndexUpdate::remove(keys::request(msg_id)));
        }
        updates.push(IndexUpdate::remove(key.clone()));
    })
    .await?;
    let is_gone = |seq: &Bytes| keys::seq_of(seq).is_none_or(|seq| seq < earliest);
    let (start, end) = keys::DISPLAYS;
    each_page(log, (start, Bytes::from_static(end)), |key, seq, updates| {
        if is_gone(seq) {
            updates.push(IndexUpdate::remove(key.clone()));
        }
    })
    .await?;
    let (start, end) = keys::COMMS;
    each_page(log, (start, Bytes::from_static(end)), |key, seq, updates| {
        if is_gone(seq) {
            // This process may still have the state of the comm, but a later process cannot read it from the log.
            updates.push(IndexUpdate::put(keys::COMMS_INCOMPLETE, Bytes::new()));
            updates.push(IndexUpdate::remove(key.clone()));
        }
    })
    .await
}

async fn each_page(
    log: &Log,
    (start, end): (&'static [u8], Bytes),
    mut each: impl FnMut(&Bytes, &Bytes, &mut Vec<IndexUpdate>),
) -> Result<(), StoreError> {
    let mut start = Bytes::from_static(start);
    loop {
        let records = log.index_scan(start.clone(), end.clone(), PAGE, false).await?;
        let mut updates = Vec::new();
        for (key, record) in &records {
            each(key, record, &mut updates);
        }
        if let Some((last, _)) = records.last() {
            // The smallest key after this page.
            start = [last, &[0][..]].concat().into();
        }
        if !updates.is_empty() {
            log.update_index(updates);
        }
        if records.len() < PAGE {
            return Ok(());
        }
    }
}
