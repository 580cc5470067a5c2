//! Small records beside a log's entries, for who looks entries up by something else than their number. What they say is
//! up to who writes them; the log keeps them, in the order of their keys, and stores them with the entries that they
//! came with.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A record to be put into a log's index, or taken out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexUpdate {
    /// The record's key; at most 65,535 bytes.
    pub key: Bytes,
    /// The record; `None` takes out what is there.
    pub value: Option<Bytes>,
}

impl IndexUpdate {
    /// Puts a record in the place of what is there under this key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    /// Takes out what is there under this key.
    pub fn remove(key: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: None,
        }
    }
}

/// Updates that go to the store together: the last one of each key.
#[derive(Clone, Debug, Default)]
pub(super) struct Updates {
    by_key: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
    /// The number of the newest one among all updates that the log was ever given.
    newest: u64,
}

impl Updates {
    /// Adds updates of which the last one has this number.
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

    /// The bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the key is to become: `None` where nothing is said of it, `Some(None)` where it is taken out.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.by_key.get(key).cloned()
    }

    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = IndexUpdate> {
        // The map panics where the start is beyond the end.
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

/// What a scan of the store becomes with updates that it does not have yet. `stored` has at least `limit` records, and
/// one more for each update, if there are so many.
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
