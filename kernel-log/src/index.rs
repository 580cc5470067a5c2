//! A log's index: small records by key, for finding entries by something other than their number. The log does not
//! interpret them. It keeps them in key order and stores them with the entries that they came with.

use std::collections::BTreeMap;

use bytes::Bytes;

/// An update of a log's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexUpdate {
    /// The key, at most 65,535 bytes.
    pub key: Bytes,
    /// The new record; `None` removes the old one.
    pub value: Option<Bytes>,
}

impl IndexUpdate {
    /// Inserts or replaces a record.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    /// Removes a record.
    pub fn remove(key: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: None,
        }
    }
}

/// Updates that are stored together: the last one of each key.
#[derive(Clone, Debug, Default)]
pub(super) struct Updates {
    by_key: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
    /// Sequence number of the newest update.
    newest: u64,
}

impl Updates {
    /// Adds updates; the last one has this sequence number.
    pub(super) fn extend_to(&mut self, newest: u64, updates: impl IntoIterator<Item = IndexUpdate>) {
        self.newest = newest;
        self.extend(updates);
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    pub(super) fn extend(&mut self, updates: impl IntoIterator<Item = IndexUpdate>) {
        for IndexUpdate { key, value } in updates {
            let length = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
            let key_length = key.len();
            self.bytes += key_length + length(&value);
            if let Some(before) = self.by_key.insert(key, value) {
                self.bytes -= key_length + length(&before);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Size of keys and values in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The pending update of a key: `None` if there is none, `Some(None)` if the update removes the record.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.by_key.get(key).cloned()
    }

    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = IndexUpdate> {
        // The map panics if the start is beyond the end.
        (start < end)
            .then(|| {
                self.by_key
                    .range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Excluded(end)))
            })
            .into_iter()
            .flatten()
            .map(|(key, value)| IndexUpdate {
                key: key.clone(),
                value: value.clone(),
            })
    }

    pub(super) fn to_vec(&self) -> Vec<IndexUpdate> {
        self.by_key
            .iter()
            .map(|(key, value)| IndexUpdate {
                key: key.clone(),
                value: value.clone(),
            })
            .collect()
    }
}

/// Applies unstored updates to the result of a store's scan. `stored` must have at least `limit` records plus one for
/// each update, if that many exist.
pub(super) fn overlay(
    stored: Vec<(Bytes, Bytes)>,
    updates: BTreeMap<Bytes, Option<Bytes>>,
    limit: usize,
    newest_first: bool,
) -> Vec<(Bytes, Bytes)> {
    if updates.is_empty() {
        return stored;
    }
    let mut records: BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
    for (key, value) in updates {
        match value {
            Some(value) => records.insert(key, value),
            None => records.remove(&key),
        };
    }
    if newest_first {
        records.into_iter().rev().take(limit).collect()
    } else {
        records.into_iter().take(limit).collect()
    }
}
