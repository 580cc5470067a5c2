//! `/api/kernels/{id}/executions`: the executions in a kernel's log, even after the kernel has ended, and execution
//! without a connected client.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, KernelId, Message, WireMessage};
use kernel_log::{Log, ReadError, Seq};
use kernel_manager::{ExecutionFilter, ExecutionRecord, ExecutionStatus, Executions, Kernel, SendError};
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::execution_outputs::answer;
use super::kernels;
use crate::Gateway;
use crate::base_url::ESCAPED;
use crate::error::ApiError;
use crate::limits::{JsonObject, text};
use crate::model::timestamp;

/// Default and maximum page size.
const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 500;
/// Longest `msg_id`, cell id and session id, in bytes.
const MAX_ID: usize = 256;

/// How long a kernel may take to receive code.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The log of a running or past kernel.
pub(super) async fn find_log(gateway: &Gateway, id: &str) -> Result<Log, ApiError> {
    Ok(find(gateway, id).await?.log().clone())
}

/// The executions of a running or past kernel.
async fn find(gateway: &Gateway, id: &str) -> Result<Executions, ApiError> {
    let parsed: KernelId = id.parse().map_err(|_| kernels::not_found(id))?;
    if let Some(kernel) = gateway.manager.get(parsed) {
        return Ok(kernel.executions());
    }
    let past = gateway.manager.past_executions(parsed).await?;
    past.ok_or_else(|| kernels::not_found(id))
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    #[serde(rename = "cellId", alias = "cell_id")]
    cell_id: Option<String>,
    session: Option<String>,
    /// One or several, separated by commas.
    status: Option<String>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    /// The `next` of the previous page.
    before: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    let executions = find(&gateway, &id).await?;
    let filter = ExecutionFilter {
        cell_id: query.cell_id,
        session: query.session,
        statuses: statuses(query.status.as_deref().unwrap_or_default())?,
        since: query.since,
        until: query.until,
    };
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let page = executions.list(&filter, query.before.map(Seq), limit).await?;
    let models: Vec<Value> = page
        .executions
        .iter()
        .map(|execution| model(&gateway, &id, execution))
        .collect();
    Ok(Json(json!({"executions": models, "next": page.next})))
}

fn statuses(text: &str) -> Result<Vec<ExecutionStatus>, ApiError> {
    text.split(',')
        .map(str::trim)
        .filter(|status| !status.is_empty())
        .map(|status| {
            serde_json::from_value(status.into()).map_err(|_| {
                ApiError::bad_request(format!(
                    "status: unknown {status:?}; use queued, running, ok, error, aborted, died or lost"
                ))
            })
        })
        .collect()
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path((id, msg_id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let executions = find(&gateway, &id).await?;
    let Some(execution) = executions.get(&msg_id).await? else {
        return Err(ApiError::not_found(format!("Execution does not exist: {msg_id}")));
    };
    let mut model = model(&gateway, &id, &execution);
    model["code"] = executions.code(&execution).await.map_err(unreadable)?.into();
    answer(&gateway.output_limits, &executions, execution, model).await
}

pub(super) fn unreadable(error: ReadError) -> ApiError {
    tracing::error!(%error, "a log cannot be read");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn address(gateway: &Gateway, id: &str, msg_id: &str) -> String {
    let escaped = utf8_percent_encode(msg_id, ESCAPED);
    let prefix = gateway.options.base_url.prefix();
    format!("{prefix}/api/kernels/{id}/executions/{escaped}")
}

/// `{msg_id, cellId, session, status, reason, execution_count, requested, started, ended, seq, url}`.
fn model(gateway: &Gateway, id: &str, execution: &ExecutionRecord) -> Value {
    json!({
        "msg_id": execution.msg_id(),
        "cellId": execution.cell_id,
        "session": execution.session,
        "status": execution.status,
        "reason": execution.reason,
        "execution_count": execution.execution_count,
        "requested": timestamp(execution.requested),
        "started": execution.started.map(timestamp),
        "ended": execution.ended.map(timestamp),
        "seq": execution.request,
        "url": address(gateway, id, execution.msg_id()),
    })
}

/// Runs code. The kernel has received it when this responds, and no client needs to stay connected.
pub(super) async fn start(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let kernel = kernels::find(&gateway, &id)?;
    let Some(code) = text(&body, "code")? else {
        return Err(ApiError::bad_request("Missing field in JSON data: code"));
    };
    let session = short(&body, "session")?.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
    let mut request = ExecuteRequest::new(code);
    request.silent = flag(&body, "silent")?.unwrap_or(request.silent);
    request.store_history = flag(&body, "store_history")?.unwrap_or(request.store_history);
    // By default, no client is expected to answer input requests.
    request.allow_stdin = flag(&body, "allow_stdin")?.unwrap_or(false);
    request.stop_on_error = flag(&body, "stop_on_error")?.unwrap_or(request.stop_on_error);
    let mut message = Message::new(request, &session);
    if let Some(msg_id) = short(&body, "msg_id")? {
        check_is_new(&kernel.executions(), msg_id, code).await?;
        msg_id.clone_into(&mut message.header.msg_id);
    }
    if let Some(cell_id) = short(&body, "cellId")? {
        message = message.with_metadata(Map::from_iter([("cellId".to_owned(), cell_id.into())]));
    }
    let wire = message.to_wire();
    let msg_id = message.header.msg_id;
    let sending = send(&gateway, &kernel, session.as_str().into(), wire);
    timeout(RECEIVE_TIMEOUT, sending)
        .await
        .map_err(|_| not_received(&msg_id))??;
    kernel.log().flushed().await;
    let execution = kernel.executions().get(&msg_id).await?;
    let location = address(&gateway, &id, &msg_id);
    let body = match &execution {
        Some(execution) => model(&gateway, &id, execution),
        // The message with this id was not an execution.
        None => json!({"msg_id": msg_id, "status": ExecutionStatus::Queued, "session": session, "url": location}),
    };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response())
}

/// 409 if the kernel was sent other code with this `msg_id`. The same code may be sent again and runs once.
async fn check_is_new(executions: &Executions, msg_id: &str, code: &str) -> Result<(), ApiError> {
    let Some(execution) = executions.get(msg_id).await? else {
        return Ok(());
    };
    let known = executions.code(&execution).await.map_err(unreadable)?;
    if known.is_none_or(|known| known == code) {
        return Ok(());
    }
    let message = format!("the msg_id {msg_id:?} was used for other code; choose another");
    Err(ApiError::new(StatusCode::CONFLICT, message))
}

/// Sends a request completely, even if the client disconnects.
async fn send(
    gateway: &Gateway,
    kernel: &Arc<Kernel>,
    session: Arc<str>,
    request: WireMessage,
) -> Result<(), ApiError> {
    let room = kernel.room(request.parts().iter().map(|part| part.len()).sum()).await;
    let kernel = kernel.clone();
    let sending = gateway.clients.spawn(async move {
        let _room = room;
        kernel.send(&session, Channel::Shell, request).await
    });
    // The task ends only with the process.
    let sent = sending.await.unwrap_or(Err(SendError::Dead));
    sent.map_err(|error| match error {
        SendError::Dead | SendError::ShutDown | SendError::Restarted => {
            ApiError::new(StatusCode::CONFLICT, error.to_string())
        }
        _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    })
}

fn not_received(msg_id: &str) -> ApiError {
    let message = format!(
        "the kernel has not received the code within {} s, but still may: repeat the request with the msg_id \
         {msg_id:?}, which runs it once, or restart the kernel",
        RECEIVE_TIMEOUT.as_secs()
    );
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
}

fn flag(body: &Map<String, Value>, field: &str) -> Result<Option<bool>, ApiError> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ApiError::bad_request(format!("{field:?} must be true or false"))),
    }
}

/// An id chosen by the client.
fn short<'a>(body: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, ApiError> {
    match text(body, field)? {
        Some("") => Err(ApiError::bad_request(format!("{field:?} is empty"))),
        Some(id) if id.len() > MAX_ID => Err(ApiError::bad_request(format!("{field:?} has more than {MAX_ID} bytes"))),
        id => Ok(id),
    }
}
