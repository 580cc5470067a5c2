//! A log's index: a stream with one subject per key. The subject has a token for each of the key's first 200 bytes, so
//! that the server can find ranges of keys; the message has the whole key.

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Info, LastRawMessageErrorKind, Stream};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::{Context, StoreError, failed};
use crate::IndexUpdate;

/// How many bytes of a key are in its subject; the rest is represented by a digest.
const IN_SUBJECT: usize = 200;
/// Maximum number of concurrent requests.
const AT_A_TIME: usize = 64;

pub(super) struct Index {
    pub(super) stream: Stream<Info>,
    pub(super) context: Context,
    /// Prefix of all subjects.
    pub(super) subject: String,
}

/// A record, and the log stream's sequence number of the block that it came with.
pub(super) struct Record {
    pub(super) came_with: u64,
    pub(super) key: Bytes,
    pub(super) value: Bytes,
}

impl Record {
    fn decode(mut bytes: Bytes) -> Option<Self> {
        let came_with = bytes.try_get_u64().ok()?;
        let length = usize::from(bytes.try_get_u16().ok()?);
        let key = (length <= bytes.len()).then(|| bytes.split_to(length))?;
        Some(Self {
            came_with,
            key,
            value: bytes,
        })
    }
}

impl Index {
    fn subject_of(&self, key: &[u8]) -> String {
        let mut subject = self.subject_prefix(&key[..key.len().min(IN_SUBJECT)]);
        match key.get(IN_SUBJECT..) {
            Some(rest) if !rest.is_empty() => {
                subject.push_str(".h");
                for byte in Sha256::digest(rest) {
                    subject.push_str(&format!("{byte:02x}"));
                }
            }
            _ => subject.push_str(".e"),
        }
        subject
    }

    fn subject_prefix(&self, key: &[u8]) -> String {
        let mut subject = self.subject.clone();
        for byte in key {
            subject.push_str(&format!(".{byte:02x}"));
        }
        subject
    }

    /// The part of the key that is in its subject.
    fn key_in(&self, subject: &str) -> Option<Vec<u8>> {
        let tokens = subject.strip_prefix(&self.subject)?.strip_prefix('.')?;
        tokens
            .split('.')
            .take_while(|token| *token != "e" && !token.starts_with('h'))
            .map(|token| u8::from_str_radix(token, 16).ok())
            .collect()
    }

    pub(super) async fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.get_subject(&self.subject_of(key)).await
    }

    async fn get_subject(&self, subject: &str) -> Result<Option<Record>, StoreError> {
        // Reads from the leader, because a replica may lag behind, and the result decides whether a request was seen
        // before.
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Record::decode(message.payload)),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(failed("read a log's index", error)),
        }
    }

    pub(super) async fn scan(
        &self,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let shared = start
            .iter()
            .zip(end)
            .take_while(|(a, b)| a == b)
            .count()
            .min(IN_SUBJECT);
        let filter = format!("{}.>", self.subject_prefix(&start[..shared]));
        let mut subjects: Vec<(Vec<u8>, String)> = self
            .stream
            .info_with_subjects(filter)
            .await
            .map_err(|error| failed("list a log's index", error))?
            .try_filter_map(|(subject, _)| async move { Ok(self.key_in(&subject).map(|key| (key, subject))) })
            .try_collect()
            .await
            .map_err(|error| failed("list a log's index", error))?;
        let cut = |key: &[u8]| key[..key.len().min(IN_SUBJECT)].to_vec();
        let (first, last) = (cut(start), cut(end));
        subjects.retain(|(key, _)| *key >= first && *key <= last);
        subjects.sort_unstable();
        if newest_first {
            subjects.reverse();
        }
        // Subjects contain only the first bytes of a key, so records with long keys may arrive out of order.
        let has_long_keys = subjects.iter().any(|(key, _)| key.len() == IN_SUBJECT);
        let most = if has_long_keys { usize::MAX } else { limit };
        let mut records: Vec<(Bytes, Bytes)> = futures::stream::iter(&subjects)
            .map(|(_, subject)| self.get_subject(subject))
            .buffered(AT_A_TIME)
            .try_filter_map(|record| async {
                let within = |record: &Record| &record.key[..] >= start && &record.key[..] < end;
                Ok(record.filter(within).map(|record| (record.key, record.value)))
            })
            .take(most)
            .try_collect()
            .await?;
        records.sort_unstable();
        if newest_first {
            records.reverse();
        }
        records.truncate(limit);
        Ok(records)
    }

    /// Applies the updates concurrently. If one fails, any of the others may have been applied.
    pub(super) async fn apply(&self, came_with: u64, updates: &[IndexUpdate]) -> Result<(), StoreError> {
        futures::stream::iter(updates)
            .map(|update| self.apply_one(came_with, update))
            .buffer_unordered(AT_A_TIME)
            .try_collect()
            .await
    }

    async fn apply_one(&self, came_with: u64, update: &IndexUpdate) -> Result<(), StoreError> {
        let subject = self.subject_of(&update.key);
        let Some(value) = &update.value else {
            self.stream
                .purge()
                .filter(subject)
                .await
                .map_err(|error| failed("write a log's index", error))?;
            return Ok(());
        };
        let mut record = BytesMut::with_capacity(10 + update.key.len() + value.len());
        record.put_u64(came_with);
        record.put_u16(update.key.len() as u16);
        record.put_slice(&update.key);
        record.put_slice(value);
        let publish = PublishMessage::build().payload(record.freeze());
        let published = async { self.context.send_publish(subject, publish).await?.await };
        published.await.map_err(|error| failed("write a log's index", error))?;
        Ok(())
    }
}
