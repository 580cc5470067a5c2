//! `GET /api/kernels/{id}/log`: a kernel's log as server-sent events (`docs/src/resume-protocol.md`).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use gateway_client::resume::{NotRecovered, Start};
use kernel_log::{Cursor, Entry, Epoch, Log, ReadError, Reader, Seq};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use super::executions::find_log;
use super::kernels::KernelPath;
use crate::Gateway;
use crate::error::ApiError;
use crate::reader_lag::Position;

/// Idle time before a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Preferred size of a chunk. Only a single event can be larger.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Where to begin: a cursor epoch:seq, start (the default), or head. The header Last-Event-ID takes precedence.
    #[param(nullable = false)]
    from: Option<String>,
    /// With the value false, the stream ends at the head instead of waiting for more entries.
    #[param(nullable = false)]
    follow: Option<bool>,
}

/// The entries after the cursor are not in the log.
#[derive(Serialize, ToSchema)]
pub(super) struct NotInLog {
    /// The name of the status.
    reason: &'static str,
    /// The problem and the remedy.
    message: &'static str,
    /// Why reading cannot continue at the cursor.
    #[schema(value_type = String)]
    not_recovered: NotRecovered,
    #[schema(value_type = String)]
    epoch: Epoch,
    #[schema(value_type = u64)]
    earliest: Seq,
    #[schema(value_type = u64)]
    head: Seq,
}

/// The kernel's log as server-sent events, also after the kernel is gone.
#[utoipa::path(
    get, path = "/api/kernels/{id}/log", tag = "logs", operation_id = "follow_log", params(KernelPath, LogQuery),
    responses(
        (status = 200, description = "Events: message (an entry, with its cursor as id), gap, end", body = String,
         content_type = "text/event-stream"),
        (status = 400, description = "The cursor is malformed"),
        (status = 404, description = "There is no such kernel or log"),
        (status = 410, description = "The entries after the cursor are not in the log", body = NotInLog),
    ),
)]
pub(super) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let log = find_log(&gateway, &id).await?;
    // A reconnecting browser repeats the URL and adds its position.
    let last = headers.get("last-event-id").map(HeaderValue::to_str);
    let from = match last {
        Some(Ok(last)) if !last.is_empty() => last,
        Some(Err(_)) => return Err(ApiError::bad_request("Last-Event-ID is not a cursor")),
        _ => query.from.as_deref().unwrap_or("start"),
    };
    let start: Start = from
        .parse()
        .map_err(|error| ApiError::bad_request(format!("from: {error}")))?;
    let (epoch, earliest, head) = (log.epoch(), log.earliest(), log.head());
    let found = start.find(epoch, earliest, head);
    if let Some(reason) = found.not_recovered {
        let gone = NotInLog {
            reason: "Gone",
            message: "the entries after this cursor are not in the log; continue at earliest, or at start",
            not_recovered: reason,
            epoch,
            earliest,
            head,
        };
        return Ok((StatusCode::GONE, Json(gone)).into_response());
    }
    let until = if query.follow == Some(false) { Some(head) } else { None };
    let position = gateway.positions.add(log.clone(), found.from);
    let stream = EventStream {
        gateway,
        position,
        epoch,
        reader: log.reader(found.from),
        log,
        until,
        ended: false,
    };
    let body = Body::from_stream(futures::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), stream))
    }));
    let content_type = HeaderValue::from_static("text/event-stream");
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

struct EventStream {
    gateway: Arc<Gateway>,
    position: Arc<Position>,
    epoch: Epoch,
    reader: Reader,
    /// Keeps the log open while it is read.
    log: Log,
    /// The last entry to send.
    until: Option<Seq>,
    ended: bool,
}

impl EventStream {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if self.until.is_some_and(|until| self.reader.position() >= until) {
            return Some(self.end("head"));
        }
        let closing = self.gateway.clone();
        let block = tokio::select! {
            // Checked first: a gateway that shuts down closes the logs of kernels that keep running.
            biased;
            // The client reconnects to the next gateway.
            () = closing.closing() => return None,
            block = timeout(KEEP_ALIVE, self.reader.next()) => block,
        };
        let mut out = BytesMut::new();
        let mut block = match block {
            Err(_) => return Some(Bytes::from_static(b": keep-alive\n\n")),
            Ok(Ok(Some(block))) => Some(block),
            Ok(Ok(None)) => return Some(self.end("gone")),
            Ok(Err(ReadError::Gap { first, last })) => {
                // With this id, a reconnecting client does not get the gap again.
                let id = Cursor {
                    epoch: self.epoch,
                    seq: last,
                };
                write_event(
                    &mut out,
                    Some(id),
                    "gap",
                    json!({"first": first, "last": last}).to_string().as_bytes(),
                );
                return Some(out.freeze());
            }
            Ok(Err(error)) => {
                warn!(kernel_id = %self.log.kernel_id(), %error, "a client's event stream ends");
                return None;
            }
        };
        while let Some(entries) = block.take() {
            self.position.sent(entries.last());
            for entry in entries.entries() {
                if self.until.is_some_and(|until| entry.seq() > until) {
                    break;
                }
                let id = Cursor {
                    epoch: self.epoch,
                    seq: entry.seq(),
                };
                write_event(&mut out, Some(id), "message", &json_of(&entry));
            }
            if out.len() < CHUNK_BYTES && self.until.is_none() {
                // If there is a gap, the next read reports it.
                block = self.reader.recent().unwrap_or(None);
            }
        }
        Some(out.freeze())
    }

    fn end(&mut self, reason: &str) -> Bytes {
        self.ended = true;
        let mut out = BytesMut::new();
        write_event(&mut out, None, "end", json!({"reason": reason}).to_string().as_bytes());
        out.freeze()
    }
}

/// Writes a server-sent event.
pub(crate) fn write_event(out: &mut BytesMut, id: Option<Cursor>, event: &str, data: &[u8]) {
    if let Some(id) = id {
        out.put_slice(format!("id: {id}\n").as_bytes());
    }
    out.put_slice(b"event: ");
    out.put_slice(event.as_bytes());
    // JSON has line breaks only as insignificant whitespace, and receivers join the lines.
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.put_slice(b"\ndata: ");
        out.put_slice(line);
    }
    out.put_slice(b"\n\n");
}

/// The entry as JSON, with its parts spliced in.
fn json_of(entry: &Entry) -> BytesMut {
    let message = entry.message();
    let mut out = BytesMut::with_capacity(entry.size() + 128);
    out.put_slice(format!(r#"{{"seq":{},"channel":"{}""#, entry.seq(), entry.channel()).as_bytes());
    for (name, part) in ["header", "parent_header", "metadata", "content"]
        .into_iter()
        .zip(message.parts())
    {
        let text = String::from_utf8_lossy(part);
        // A part that is not JSON becomes a string, so that the whole stays JSON.
        let is_json = serde_json::from_str::<&RawValue>(&text).is_ok();
        let json = if is_json {
            text
        } else {
            serde_json::Value::from(text.into_owned()).to_string().into()
        };
        out.put_slice(format!(r#","{name}":"#).as_bytes());
        out.put_slice(json.as_bytes());
    }
    out.put_slice(br#","buffers":["#);
    for (index, buffer) in message.buffers().iter().enumerate() {
        out.put_slice(if index == 0 { b"\"" } else { b",\"" });
        out.put_slice(BASE64_STANDARD.encode(buffer).as_bytes());
        out.put_u8(b'"');
    }
    out.put_slice(b"]}");
    out
}
