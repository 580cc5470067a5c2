//! An execution with its outputs as JSON. Folding and writing happen on blocking threads, with bounds on memory for any
//! number of clients at any speed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use jupyter_protocol::WireMessage;
use jupyter_protocol::content::InputRequest;
use kernel_manager::fold::{Fold, FoldLimits, Output};
use kernel_manager::{ExecutionOutputs, ExecutionRecord, Executions};
use serde::{Serialize, Serializer};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tracing::debug;
use utoipa::ToSchema;

use super::executions::{ExecutionModel, unreadable};
use crate::error::ApiError;

/// How many executions are folded concurrently; each occupies a processor.
const MAX_CONCURRENT_FOLDS: usize = 2;
/// Limit of outputs that are being sent, in [`UNIT`]s.
const MAX_UNREAD_UNITS: u32 = 256;
const UNIT: usize = 1 << 20;
/// How long a request waits for other clients to finish reading.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Size of a piece of the body, and how many pieces may wait for the client.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// The most bytes of one execution's outputs in a list, and of all outputs in the list. A list needs no reservation of
/// memory.
const SMALL: usize = 64 << 10;
const SMALL_OF_LIST: usize = UNIT - 1;
/// The most entries of the log that are read for the outputs of one execution in a list.
const SMALL_ENTRIES: u64 = 4_096;

/// Bounds responses with outputs. Clones share the same limits.
#[derive(Clone)]
pub(crate) struct OutputLimits {
    folding: Arc<Semaphore>,
    unread: Arc<Semaphore>,
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self {
            folding: Arc::new(Semaphore::new(MAX_CONCURRENT_FOLDS)),
            unread: Arc::new(Semaphore::new(MAX_UNREAD_UNITS as usize)),
        }
    }
}

impl OutputLimits {
    /// Folds the outputs and reserves memory for sending them. Small outputs need no reservation.
    async fn outputs(
        &self,
        executions: &Executions,
        execution: &ExecutionRecord,
    ) -> Result<(ExecutionOutputs, Option<OwnedSemaphorePermit>), ApiError> {
        let outputs = self.fold(executions, execution).await?;
        let Some(units) = units(outputs.fold.bytes()) else {
            return Ok((outputs, None));
        };
        if let Ok(room) = self.unread.clone().try_acquire_many_owned(units) {
            return Ok((outputs, Some(room)));
        }
        // The outputs are dropped while this request waits. They may grow in that time, so the reservation is for their
        // maximum size.
        drop(outputs);
        let units = max_units();
        let waiting = timeout(WAIT_TIMEOUT, self.unread.clone().acquire_many_owned(units));
        let Ok(Ok(room)) = waiting.await else {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many large outputs are being read; try again later",
            ));
        };
        Ok((self.fold(executions, execution).await?, Some(room)))
    }

    async fn fold(&self, executions: &Executions, execution: &ExecutionRecord) -> Result<ExecutionOutputs, ApiError> {
        let (executions, execution) = (executions.clone(), execution.clone());
        let folded = self.run(move || Handle::current().block_on(executions.outputs(&execution)));
        folded.await.map_err(|error| not_folded(&error))?.map_err(unreadable)
    }

    /// Runs `fold` on a blocking thread. The number of concurrent folds is bounded.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        fold: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // The semaphore is never closed.
        let folding = self.folding.clone().acquire_owned().await;
        let folded = spawn_blocking(move || {
            let _folding = folding;
            fold()
        });
        folded.await
    }
}

/// The reservation for outputs of this size; `None` for less than one unit.
fn units(bytes: usize) -> Option<u32> {
    let units = u32::try_from(bytes / UNIT).unwrap_or(MAX_UNREAD_UNITS);
    (units > 0).then(|| units.min(MAX_UNREAD_UNITS))
}

fn max_units() -> u32 {
    units(FoldLimits::default().max_bytes).unwrap_or(1)
}

/// The outputs of each execution. They are `None` if they are large, are incomplete, may still change, or do not fit
/// into the list any more, or if the execution ended before `since`. Outputs may change while the execution runs, or if
/// they have a `display_id`.
pub(super) async fn small_outputs(
    limits: &OutputLimits,
    executions: &Executions,
    records: &[ExecutionRecord],
    since: Option<DateTime<Utc>>,
) -> Result<Vec<Option<Vec<Output>>>, ApiError> {
    let (executions, records) = (executions.clone(), records.to_vec());
    let fold = async move {
        let mut room = SMALL_OF_LIST;
        let mut all = Vec::with_capacity(records.len());
        for record in &records {
            let is_short = record.last.0.saturating_sub(record.request.0) <= SMALL_ENTRIES;
            let is_wanted = record
                .ended
                .is_some_and(|ended| since.is_none_or(|since| ended >= since));
            if !is_wanted || !is_short || room == 0 {
                all.push(None);
                continue;
            }
            let outputs = executions
                .outputs_within(record, FoldLimits::max_bytes(SMALL))
                .await
                .map_err(unreadable)?;
            let fold = &outputs.fold;
            let fits = !fold.truncated() && fold.bytes() <= room;
            let is_settled = outputs.complete && fold.display_ids().is_empty();
            all.push((fits && is_settled).then(|| {
                room -= fold.bytes();
                fold.outputs()
            }));
        }
        Ok(all)
    };
    let folded = limits.run(move || Handle::current().block_on(fold));
    folded.await.map_err(|error| not_folded(&error))?
}

/// Responds with the execution and its outputs.
pub(super) async fn answer(
    limits: &OutputLimits,
    executions: &Executions,
    execution: ExecutionRecord,
    model: ExecutionModel,
    code: Option<String>,
) -> Result<Response, ApiError> {
    let (outputs, room) = limits.outputs(executions, &execution).await?;
    let input_request = outputs
        .fold
        .input_request()
        .filter(|_| !execution.status.has_ended())
        .and_then(Question::of);
    let body = streamed_body(move |writer| {
        let _room = room;
        let execution = ExecutionWithOutputs {
            execution: model,
            code,
            input_request,
            cursor: outputs.cursor.to_string(),
            complete: outputs.complete,
            truncated: outputs.fold.truncated(),
            outputs: &outputs.fold,
        };
        serde_json::to_writer(writer, &execution).map_err(Into::into)
    });
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

fn not_folded(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the outputs cannot be folded: {error}"),
    )
}

/// An execution with its outputs.
#[derive(Serialize, ToSchema)]
pub(super) struct ExecutionWithOutputs<'a> {
    #[serde(flatten)]
    execution: ExecutionModel,
    code: Option<String>,
    /// The input request that is not answered yet; null if there is none.
    #[schema(inline)]
    input_request: Option<Question>,
    /// The position in the log up to which the outputs are complete. Later messages follow after it.
    cursor: String,
    /// Whether no messages of the execution are missing.
    complete: bool,
    /// Whether outputs are left out because there are too many; the log has them.
    truncated: bool,
    /// Outputs in the format of nbformat 4.5. JSON within them is written verbatim, however deeply it is nested.
    #[serde(serialize_with = "each")]
    #[schema(value_type = Vec<Object>)]
    outputs: &'a Fold,
}

/// An input request of the kernel.
#[derive(Serialize, ToSchema)]
pub(super) struct Question {
    prompt: String,
    password: bool,
}

impl Question {
    /// Reads the prompt of an `input_request`.
    pub(super) fn of(message: &WireMessage) -> Option<Self> {
        let InputRequest { prompt, password, .. } = serde_json::from_slice(message.content()).ok()?;
        Some(Self { prompt, password })
    }
}

/// Serializes one output at a time.
fn each<S: Serializer>(fold: &&Fold, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(fold.each_output())
}

/// A body that a blocking thread writes as fast as the client reads it.
fn streamed_body(write: impl FnOnce(&mut Pieces) -> io::Result<()> + Send + 'static) -> Body {
    let (sender, mut receiver) = mpsc::channel(PIECES);
    spawn_blocking(move || {
        let mut pieces = Pieces {
            piece: BytesMut::new(),
            sender,
        };
        if let Err(error) = write(&mut pieces).and_then(|()| pieces.flush()) {
            debug!(%error, "an answer was not sent completely");
            // The client sees a truncated response, unless it has disconnected.
            let _ = pieces.sender.blocking_send(Err(error));
        }
    });
    Body::from_stream(futures::stream::poll_fn(move |context| receiver.poll_recv(context)))
}

/// Sends what is written to it in pieces.
struct Pieces {
    piece: BytesMut,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.put_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has disconnected");
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn writing_waits_until_the_client_reads() {
        let (done, mut ended) = oneshot::channel();
        let mut body = streamed_body(move |writer| {
            for number in 0..100_000_u32 {
                writer.write_all(&number.to_be_bytes())?;
            }
            let _ = done.send(());
            Ok(())
        });
        let mut all = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
        assert_eq!(all.len(), PIECE);
        assert!(ended.try_recv().is_err(), "400 KB must exceed the buffered pieces");
        all.extend(body.collect().await.unwrap().to_bytes());
        let numbers = all.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes));
        assert!(numbers.eq(0..100_000));
    }

    #[tokio::test]
    async fn a_disconnect_ends_writing_and_a_failure_truncates_the_body() {
        let (done, ended) = oneshot::channel();
        let body = streamed_body(move |writer| {
            let written = std::iter::repeat(()).try_for_each(|()| writer.write_all(b"text"));
            let _ = done.send(());
            written
        });
        drop(body);
        ended.await.unwrap();
        let failing = streamed_body(|writer| {
            writer.write_all(b"text")?;
            Err(io::Error::other("no more"))
        });
        assert!(failing.collect().await.is_err());
    }

    #[tokio::test]
    async fn only_large_outputs_reserve_memory() {
        assert_eq!(units(UNIT - 1), None);
        assert_eq!(units(70 << 20), Some(70));
        assert_eq!(units(usize::MAX), Some(MAX_UNREAD_UNITS));
        assert!(max_units() <= MAX_UNREAD_UNITS);
    }
}
