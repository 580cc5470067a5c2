use std::collections::HashSet;
use std::fmt;

use chrono::{DateTime, Utc};
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Cursor, Entry, ExecutionStatus, Lifecycle, Log, Origin, ReadError, Seq, StoreError};

use super::execution_record::ExecutionRecord;
use super::index_keys as keys;
use super::parent_filter::ParentFilter;
use super::synthetic_reply::NOT_KEPT;
use crate::fold::{Fold, FoldLimits};

/// Index records per read.
const PAGE: usize = 256;
/// The most index records that one page of results examines.
const MAX_SCANNED: usize = 20_000;

/// The executions of a running or ended kernel, read from its log.
///
/// ```
/// # use kernel_log::Log;
/// # use kernel_manager::{ExecutionFilter, Executions};
/// # async fn show(log: Log) -> Result<(), Box<dyn std::error::Error>> {
/// let executions = Executions::of(log);
/// let filter = ExecutionFilter { cell_id: Some("a1b2".to_owned()), ..ExecutionFilter::default() };
/// for execution in executions.list(&filter, None, 1).await?.executions {
///     let outputs = executions.outputs(&execution).await?;
///     println!("{}: {}", execution.status.as_str(), serde_json::to_string(&outputs.fold.outputs())?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Executions {
    log: Log,
    are_past: bool,
}

impl fmt::Debug for Executions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executions")
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

/// Selects the executions that match all of these fields.
#[derive(Clone, Debug, Default)]
pub struct ExecutionFilter {
    /// The notebook cell.
    pub cell_id: Option<String>,
    /// The session that sent the request.
    pub session: Option<String>,
    /// The statuses, any of which matches; all match if it is empty.
    pub statuses: Vec<ExecutionStatus>,
    /// Requested at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Requested before this time.
    pub until: Option<DateTime<Utc>>,
    /// Whether only the newest execution of each notebook cell matches. All executions without a cell match.
    pub latest_of_cells: bool,
}

impl ExecutionFilter {
    fn matches(&self, execution: &ExecutionRecord) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, value: Option<&T>) -> bool {
            wanted.is_none() || wanted.as_ref() == value
        }
        is(&self.cell_id, execution.cell_id.as_ref())
            && is(&self.session, Some(&execution.session))
            && (self.statuses.is_empty() || self.statuses.contains(&execution.status))
            && self.since.is_none_or(|since| execution.requested >= since)
            && self.until.is_none_or(|until| execution.requested < until)
    }
}

/// A page of executions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutionPage {
    /// Newest first.
    pub executions: Vec<ExecutionRecord>,
    /// Pass this as `before` for the next page; `None` on the last page.
    pub next: Option<Seq>,
}

/// The outputs of an execution.
#[non_exhaustive]
pub struct ExecutionOutputs {
    /// The outputs as a notebook shows them.
    pub fold: Fold,
    /// The outputs include everything up to this position. Follow the log from there for more.
    pub cursor: Cursor,
    /// Whether no entries of the execution are missing.
    pub complete: bool,
    /// Whether entries before the first output are missing.
    pub(super) trimmed: bool,
}

impl fmt::Debug for ExecutionOutputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionOutputs")
            .field("cursor", &self.cursor)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

impl Executions {
    /// The executions in this log.
    #[must_use]
    pub fn of(log: Log) -> Self {
        Self { log, are_past: false }
    }

    /// The executions in the log of an ended kernel. Executions without a recorded end count as died.
    pub(crate) fn of_the_past(log: Log) -> Self {
        Self { log, are_past: true }
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The execution with this `msg_id`; `None` if the log has none.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub async fn get(&self, msg_id: &str) -> Result<Option<ExecutionRecord>, StoreError> {
        let Some(seq) = self.log.index_get(keys::request(msg_id)).await? else {
            return Ok(None);
        };
        let Some(seq) = keys::seq_of(&seq) else {
            return Ok(None);
        };
        let record = self.log.index_get(keys::execution(seq)).await?;
        Ok(record.and_then(|json| self.read(&json)))
    }

    /// At most `limit` matching executions, newest first, requested before entry `before`. A page looks at no more than
    /// 20,000 executions and may be short; [`ExecutionPage::next`] shows whether there are more. With
    /// [`latest_of_cells`](ExecutionFilter::latest_of_cells), cells of earlier pages may occur again.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub async fn list(
        &self,
        filter: &ExecutionFilter,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<ExecutionPage, StoreError> {
        let (start, mut end) = (keys::EXECUTIONS.0, bytes::Bytes::from_static(keys::EXECUTIONS.1));
        if let Some(before) = before {
            end = keys::execution(before);
        }
        let mut executions: Vec<ExecutionRecord> = Vec::new();
        let mut cells = HashSet::new();
        let mut scanned = 0;
        loop {
            let records = self.log.index_scan(start, end.clone(), PAGE, true).await?;
            let last = records.len() < PAGE;
            for (key, json) in records {
                if executions.len() == limit || scanned == MAX_SCANNED {
                    return Ok(ExecutionPage {
                        executions,
                        next: keys::seq_of(&end),
                    });
                }
                scanned += 1;
                let execution = self.read(&json).filter(|execution| filter.matches(execution));
                executions.extend(execution.filter(|execution| {
                    let mut is_latest = || execution.cell_id.clone().is_none_or(|cell| cells.insert(cell));
                    !filter.latest_of_cells || is_latest()
                }));
                end = key;
            }
            if last {
                return Ok(ExecutionPage { executions, next: None });
            }
        }
    }

    fn read(&self, json: &[u8]) -> Option<ExecutionRecord> {
        let mut record: ExecutionRecord = serde_json::from_slice(json).ok()?;
        if self.are_past && !record.status.has_ended() {
            record.status = ExecutionStatus::Died;
            record.reason = Some("the kernel ended while it was not recorded".to_owned());
            record.open_input = None;
        }
        // Some stores make index updates visible before entries.
        (record.request <= self.log.head()).then_some(record)
    }

    /// The code of the execution; `None` if its request is no longer in the log.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read.
    pub async fn code(&self, execution: &ExecutionRecord) -> Result<Option<String>, ReadError> {
        code(&self.log, execution).await
    }

    /// The `execute_request`; `None` if it is no longer in the log.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read.
    pub async fn request(&self, execution: &ExecutionRecord) -> Result<Option<WireMessage>, ReadError> {
        Ok(message_at(&self.log, execution.request)
            .await?
            .map(|(_, message)| message))
    }

    /// The open question of the execution, as the kernel sent it; `None` if none is open.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read.
    pub async fn question(&self, execution: &ExecutionRecord) -> Result<Option<WireMessage>, ReadError> {
        let Some(seq) = execution.open_input else {
            return Ok(None);
        };
        Ok(message_at(&self.log, seq).await?.map(|(_, message)| message))
    }

    /// A digest that changes with every message of the execution. While the execution runs, other entries change the
    /// digest, too.
    #[must_use]
    pub fn outputs_digest(&self, execution: &ExecutionRecord) -> String {
        // Records of running executions do not store their progress.
        let last = if execution.ended.is_some() {
            execution.last
        } else {
            self.log.head()
        };
        format!("{}:{last}", self.log.epoch())
    }

    /// Folds the execution's outputs so far. They are complete if `execution` has ended and no entries are missing.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read.
    pub async fn outputs(&self, execution: &ExecutionRecord) -> Result<ExecutionOutputs, ReadError> {
        self.outputs_within(execution, FoldLimits::default()).await
    }

    /// As [`outputs`](Self::outputs), with other limits.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read.
    pub async fn outputs_within(
        &self,
        execution: &ExecutionRecord,
        limits: FoldLimits,
    ) -> Result<ExecutionOutputs, ReadError> {
        // The index may report an end whose entry is not stored yet and cannot be read.
        if execution.ended.is_some() && execution.last > self.log.head() {
            self.log.flushed().await;
        }
        fold_within(&self.log, execution, self.log.head(), limits).await
    }
}

pub(super) async fn code(log: &Log, execution: &ExecutionRecord) -> Result<Option<String>, ReadError> {
    #[derive(serde::Deserialize)]
    struct Request {
        code: String,
    }
    let request = entry_at(log, execution.request).await?;
    Ok(request.and_then(|entry| {
        let request: Request = serde_json::from_slice(entry.message().content()).ok()?;
        Some(request.code)
    }))
}

/// Folds the execution's entries up to `until`, including updates of its displays by other executions.
pub(super) async fn fold(log: &Log, execution: &ExecutionRecord, until: Seq) -> Result<ExecutionOutputs, ReadError> {
    fold_within(log, execution, until, FoldLimits::default()).await
}

async fn fold_within(
    log: &Log,
    execution: &ExecutionRecord,
    until: Seq,
    limits: FoldLimits,
) -> Result<ExecutionOutputs, ReadError> {
    let mut outputs = ExecutionOutputs {
        fold: Fold::new(limits),
        cursor: Cursor {
            epoch: log.epoch(),
            seq: until,
        },
        complete: true,
        trimmed: false,
    };
    // While an execution runs, its stored record does not keep `last` up to date.
    let end = if execution.ended.is_some() {
        until.min(execution.last)
    } else {
        until
    };
    let mut filter = ParentFilter::new(execution.msg_id());
    let mut reader = log.reader(execution.request);
    while reader.position() < end {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => {
                outputs.complete = false;
                // Retention may remove entries during the read, so the gap can be between two outputs.
                if outputs.fold.bytes() == 0 {
                    outputs.trimmed = true;
                } else {
                    outputs.fold.note_missing(&format!("{NOT_KEPT}\n"));
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in block.entries().take_while(|entry| entry.seq() <= end) {
            let message = entry.message();
            match entry.origin() {
                Origin::Kernel if entry.channel() != Channel::Control && filter.matches(&message) => {
                    outputs.fold.apply(entry.channel(), &message);
                }
                // The parent of an `input_reply` is the `input_request`, not the execution's request.
                Origin::Client if entry.channel() == Channel::Stdin => outputs.fold.apply(entry.channel(), &message),
                Origin::Lifecycle if Lifecycle::from_message(&message).is_some_and(|event| event.is_loss()) => {
                    outputs.complete = false
                }
                // A synthetic message, such as a notice of missing output.
                Origin::Lifecycle if filter.matches(&message) => outputs.fold.apply(entry.channel(), &message),
                _ => {}
            }
        }
        // Reading entries from memory does not wait, so yield to other tasks.
        tokio::task::yield_now().await;
    }
    for display_id in outputs.fold.display_ids() {
        let update = log.index_get(keys::display(&display_id)).await?;
        if let Some(seq) = update.and_then(|seq| keys::seq_of(&seq))
            && seq > end
            && seq <= until
            && let Some(entry) = entry_at(log, seq).await?
        {
            outputs.fold.update_display(entry.message().content());
        }
    }
    Ok(outputs)
}

/// The entry with this number; `None` if the log does not have it.
pub(super) async fn entry_at(log: &Log, seq: Seq) -> Result<Option<Entry>, ReadError> {
    if seq > log.head() {
        return Ok(None);
    }
    match log.reader(Seq(seq.0.saturating_sub(1))).next().await {
        Ok(Some(block)) => Ok(block.entries().find(|entry| entry.seq() == seq)),
        Ok(None) | Err(ReadError::Gap { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The channel and message of the entry with this number; `None` if the log does not have it.
pub(super) async fn message_at(log: &Log, seq: Seq) -> Result<Option<(Channel, WireMessage)>, ReadError> {
    let entry = entry_at(log, seq).await?;
    Ok(entry.map(|entry| (entry.channel(), entry.message())))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use jupyter_protocol::KernelId;
    use kernel_log::{IndexUpdate, LogOptions, Logs, MemoryStore, NewEntry};

    fn message(kind: &str, msg_id: &str, content: &Value) -> WireMessage {
        let part = |value: Value| Bytes::from(value.to_string());
        let header = part(json!({"msg_id": msg_id, "msg_type": kind}));
        let parent = part(json!({"msg_id": "asked"}));
        WireMessage::from_parts([header, parent, part(json!({})), part(content.clone())], [])
    }

    fn append(log: &Log, origin: Origin, channel: Channel, message: &WireMessage) -> Seq {
        let entry = NewEntry {
            origin,
            channel,
            session: "",
            message,
        };
        log.append([entry])
    }

    #[tokio::test]
    async fn an_execution_with_a_recorded_end_has_all_of_its_outputs() {
        let (logs, mut stepper) = Logs::stepped(Arc::new(MemoryStore::new()), LogOptions::default());
        let log = logs.open(KernelId::random()).await.unwrap();
        let request = message("execute_request", "asked", &json!({"code": "print(1)"}));
        let request = append(&log, Origin::Client, Channel::Shell, &request);
        assert!(stepper.store());
        stepper.publish();

        let printed = message("stream", "printed", &json!({"name": "stdout", "text": "1"}));
        append(&log, Origin::Kernel, Channel::Iopub, &printed);
        let idle = message("status", "idle", &json!({"execution_state": "idle"}));
        let last = append(&log, Origin::Kernel, Channel::Iopub, &idle);
        let record = json!({
            "header": {"msg_id": "asked", "msg_type": "execute_request"}, "session": "", "status": "ok",
            "request": request.0, "last": last.0, "requested": chrono::Utc::now(), "ended": chrono::Utc::now(),
        });
        log.update_index([
            IndexUpdate::put(keys::request("asked"), keys::number(request)),
            IndexUpdate::put(keys::execution(request), record.to_string()),
        ]);
        let executions = Executions::of(log);
        let execution = executions.get("asked").await.unwrap().unwrap();
        assert!(execution.ended.is_some());

        let (outputs, ()) = tokio::join!(executions.outputs(&execution), async {
            tokio::task::yield_now().await;
            assert!(stepper.store());
            stepper.publish();
        });
        let outputs = serde_json::to_value(outputs.unwrap().fold.outputs()).unwrap();
        assert_eq!(outputs[0]["text"], "1");
    }

    #[tokio::test]
    async fn outputs_that_are_removed_during_a_read_are_replaced_by_a_note() {
        let options = LogOptions::default()
            .with_stored_bytes(8 << 10)
            .with_memory_bytes(8 << 10);
        let (logs, mut stepper) = Logs::stepped(Arc::new(MemoryStore::new()), options);
        let log = logs.open(KernelId::random()).await.unwrap();
        let request = message("execute_request", "asked", &json!({"code": "…"}));
        let request = append(&log, Origin::Client, Channel::Shell, &request);
        let mut print = |numbers: std::ops::Range<u32>| {
            for number in numbers {
                let text = format!("{number} {}\n", "x".repeat(1 << 10));
                let printed = message("stream", "printed", &json!({"name": "stdout", "text": text}));
                append(&log, Origin::Kernel, Channel::Iopub, &printed);
                assert!(stepper.store());
                stepper.publish();
            }
        };
        print(0..5);
        let record = json!({
            "header": {"msg_id": "asked", "msg_type": "execute_request"}, "session": "", "status": "running",
            "request": request.0, "last": request.0, "requested": chrono::Utc::now(),
        });
        let record: ExecutionRecord = serde_json::from_value(record).unwrap();
        let end = Seq(log.head().0 + 20);
        let mut folding = std::pin::pin!(fold(&log, &record, end));
        let first = std::future::poll_fn(|cx| Poll::Ready(folding.as_mut().poll(cx))).await;
        assert!(first.is_pending(), "the fold does not yield after each block");
        print(5..25);
        let outputs = folding.await.unwrap();
        let texts: Vec<_> = outputs
            .fold
            .outputs()
            .iter()
            .map(|output| format!("{output:?}"))
            .collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[1].contains(NOT_KEPT) && texts[2].contains("24 x"));
        assert!(!outputs.trimmed && !outputs.complete);
    }
}
