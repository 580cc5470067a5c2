//! `/api/kernels/{id}/executions`: the executions in a kernel's log, even after the kernel has ended, and execution
//! without a connected client.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{Extensions, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, KernelId, Message, WireMessage};
use kernel_log::{ExecutionStatus, InvalidExecutionStatus, Log, ReadError, Seq};
use kernel_manager::fold::Output;
use kernel_manager::{ExecutionFilter, ExecutionRecord, Executions, Kernel, SendError};
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use tokio::time::timeout;
use utoipa::openapi::schema::Object;
use utoipa::{IntoParams, ToSchema};

use super::execution_outputs::{ExecutionWithOutputs, Question, answer, small_outputs};
use super::kernels::{self, KernelPath};
use crate::Gateway;
use crate::audit::CodeAudit;
use crate::base_url::ESCAPED;
use crate::error::ApiError;
use crate::limits::JsonObject;
use crate::model::{one_of, timestamp};

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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only executions of this cell.
    #[serde(rename = "cellId", alias = "cell_id")]
    #[param(nullable = false)]
    cell_id: Option<String>,
    /// Only executions that this session requested.
    #[param(nullable = false)]
    session: Option<String>,
    /// Only executions with one of these statuses, separated by commas: queued, running, ok, error, aborted, died,
    /// lost.
    #[param(nullable = false)]
    status: Option<String>,
    /// Only executions that were requested at this time or later.
    #[param(nullable = false)]
    since: Option<DateTime<Utc>>,
    /// Only executions that were requested before this time.
    #[param(nullable = false)]
    until: Option<DateTime<Utc>>,
    /// With the value cell, lists only the newest execution of each cell, and executions without a cell, and adds
    /// input_request and outputs_digest to each.
    #[param(nullable = false)]
    #[serde(default)]
    latest: Option<Latest>,
    /// With the value small, adds the outputs of ended executions if they are complete, have no display_id and take at
    /// most 64 KiB, up to 1 MiB per response. A client need not request these executions one by one.
    #[param(nullable = false)]
    #[serde(default)]
    outputs: Option<WithOutputs>,
    /// With outputs=small: only outputs of executions that ended at this time or later.
    #[param(nullable = false)]
    outputs_since: Option<DateTime<Utc>>,
    /// The value of next in the previous page.
    #[param(nullable = false)]
    before: Option<u64>,
    /// Page size: 50 by default, 500 at most.
    #[param(nullable = false)]
    limit: Option<usize>,
}

/// Which executions are the latest.
#[derive(Clone, Copy, Deserialize, PartialEq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Latest {
    /// The newest one of each cell.
    Cell,
}

/// Which outputs are listed.
#[derive(Clone, Copy, Deserialize, PartialEq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum WithOutputs {
    /// Small outputs that no longer change.
    Small,
}

/// A page of executions.
#[derive(Serialize, ToSchema)]
#[schema(as = Executions)]
pub(super) struct ExecutionsModel {
    executions: Vec<ListedExecution>,
    /// Where the next page begins; null on the last one.
    #[schema(value_type = Option<u64>)]
    next: Option<Seq>,
}

/// An execution in a list.
#[derive(Serialize, ToSchema)]
pub(super) struct ListedExecution {
    #[serde(flatten)]
    execution: ExecutionModel,
    /// With latest=cell: the input request that is not answered yet; null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Question>, required = false)]
    input_request: Option<Option<Question>>,
    /// With latest=cell: a digest that changes with every message of the execution. While it runs, other entries change
    /// it as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    outputs_digest: Option<String>,
    /// With outputs=small: the outputs in the format of nbformat 4.5; absent if they are large or may still change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Object>, required = false, nullable = false)]
    outputs: Option<Vec<Output>>,
}

/// An execution.
#[derive(Serialize, ToSchema)]
#[schema(as = Execution)]
pub(super) struct ExecutionModel {
    msg_id: String,
    /// The notebook's cell, if the client named it.
    #[serde(rename = "cellId")]
    #[schema(required = false)]
    cell_id: Option<String>,
    /// SHA-256 of the code in UTF-8, in hexadecimal; null for an execution that an earlier version of the gateway
    /// recorded.
    #[schema(required = false)]
    code_hash: Option<String>,
    session: String,
    #[schema(schema_with = status)]
    status: ExecutionStatus,
    /// What ended the kernel, if the execution died with it.
    #[schema(required = false)]
    reason: Option<String>,
    #[schema(required = false)]
    execution_count: Option<u64>,
    #[schema(format = DateTime, required = false)]
    requested: String,
    #[schema(format = DateTime, required = false)]
    started: Option<String>,
    #[schema(format = DateTime, required = false)]
    ended: Option<String>,
    /// The number of the request's log entry.
    #[schema(value_type = u64, required = false)]
    seq: Seq,
    url: String,
}

fn status() -> Object {
    one_of(ExecutionStatus::KNOWN.map(ExecutionStatus::as_str))
}

/// Code to run.
#[derive(Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(super) struct NewExecution {
    #[schema(required = true, nullable = false)]
    code: Option<String>,
    /// An id that the client chooses. If the request is sent again with the same id, the code runs only once.
    msg_id: Option<String>,
    #[serde(rename = "cellId")]
    cell_id: Option<String>,
    session: Option<String>,
    silent: Option<bool>,
    store_history: Option<bool>,
    /// Whether the code may request input; false by default.
    allow_stdin: Option<bool>,
    stop_on_error: Option<bool>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ExecutionPath {
    /// The kernel's id.
    #[param(format = Uuid)]
    id: String,
    /// The msg_id of the execute_request.
    msg_id: String,
}

/// The executions in a kernel's log, newest first; also after the kernel is gone.
#[utoipa::path(
    get, path = "/api/kernels/{id}/executions", tag = "executions", operation_id = "list_executions",
    params(KernelPath, ListQuery),
    responses(
        (status = 200, description = "A page of executions", body = ExecutionsModel),
        (status = 400, description = "A parameter is malformed"),
        (status = 404, description = "There is no such kernel or log"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ExecutionsModel>, ApiError> {
    let executions = find(&gateway, &id).await?;
    let filter = ExecutionFilter {
        cell_id: query.cell_id,
        session: query.session,
        statuses: statuses(query.status.as_deref().unwrap_or_default())?,
        since: query.since,
        until: query.until,
        latest_of_cells: query.latest == Some(Latest::Cell),
    };
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let page = executions.list(&filter, query.before.map(Seq), limit).await?;
    let mut outputs = match query.outputs {
        Some(WithOutputs::Small) => {
            let limits = &gateway.output_limits;
            small_outputs(limits, &executions, &page.executions, query.outputs_since).await?
        }
        None => Vec::new(),
    }
    .into_iter();
    let mut listed = Vec::with_capacity(page.executions.len());
    for execution in &page.executions {
        let mut item = ListedExecution {
            execution: model(&gateway, &id, execution),
            input_request: None,
            outputs_digest: None,
            outputs: outputs.next().flatten(),
        };
        if filter.latest_of_cells {
            let question = executions.question(execution).await.map_err(unreadable)?;
            item.input_request = Some(question.as_ref().and_then(Question::of));
            item.outputs_digest = Some(executions.outputs_digest(execution));
        }
        listed.push(item);
    }
    Ok(Json(ExecutionsModel {
        executions: listed,
        next: page.next,
    }))
}

fn statuses(text: &str) -> Result<Vec<ExecutionStatus>, ApiError> {
    text.split(',')
        .map(str::trim)
        .filter(|status| !status.is_empty())
        .map(|status| {
            let parsed = status.parse();
            parsed.map_err(|error: InvalidExecutionStatus| ApiError::bad_request(format!("status: {error}")))
        })
        .collect()
}

/// An execution with its outputs in notebook format.
#[utoipa::path(
    get, path = "/api/kernels/{id}/executions/{msg_id}", tag = "executions", operation_id = "get_execution",
    params(ExecutionPath),
    responses(
        (status = 200, description = "The execution", body = ExecutionWithOutputs),
        (status = 404, description = "There is no such execution"),
        (status = 503, description = "Too many large outputs are being read"),
    ),
)]
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(ExecutionPath { id, msg_id }): Path<ExecutionPath>,
) -> Result<Response, ApiError> {
    let executions = find(&gateway, &id).await?;
    let Some(execution) = executions.get(&msg_id).await? else {
        return Err(ApiError::not_found(format!("Execution does not exist: {msg_id}")));
    };
    let model = model(&gateway, &id, &execution);
    let code = executions.code(&execution).await.map_err(unreadable)?;
    answer(&gateway.output_limits, &executions, execution, model, code).await
}

pub(super) fn unreadable(error: ReadError) -> ApiError {
    tracing::error!(%error, "a log cannot be read");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn address(gateway: &Gateway, id: &str, msg_id: &str) -> String {
    let escaped = utf8_percent_encode(msg_id, ESCAPED);
    let options = gateway.options();
    let prefix = options.base_url.prefix();
    format!("{prefix}/api/kernels/{id}/executions/{escaped}")
}

fn model(gateway: &Gateway, id: &str, execution: &ExecutionRecord) -> ExecutionModel {
    ExecutionModel {
        msg_id: execution.msg_id().to_owned(),
        cell_id: execution.cell_id.clone(),
        code_hash: execution.code_hash.clone(),
        session: execution.session.clone(),
        status: execution.status,
        reason: execution.reason.clone(),
        execution_count: execution.execution_count,
        requested: timestamp(execution.requested),
        started: execution.started.map(timestamp),
        ended: execution.ended.map(timestamp),
        seq: execution.request,
        url: address(gateway, id, execution.msg_id()),
    }
}

/// Runs code without a connected client.
///
/// The kernel has received the code when this responds.
#[utoipa::path(
    post, path = "/api/kernels/{id}/executions", tag = "executions", operation_id = "run", params(KernelPath),
    request_body = NewExecution,
    responses(
        (status = 202, description = "The kernel has the code", body = ExecutionModel,
         headers(("Location" = String, description = "The execution's address"))),
        (status = 400, description = "The request is malformed"),
        (status = 404, description = "There is no such kernel"),
        (status = 408, description = "The body did not arrive in time"),
        (status = 409, description = "The kernel is dead, or other code has this msg_id"),
        (status = 413, description = "The body is too large"),
        (status = 500, description = "The kernel could not be reached"),
        (status = 504, description = "The kernel did not receive the code in time"),
    ),
)]
pub(super) async fn start(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    request: Extensions,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let kernel = kernels::find(&gateway, &id)?;
    let audit = CodeAudit::new(&gateway, &request, &kernel);
    let body: NewExecution = body.read()?;
    let Some(code) = body.code else {
        return Err(ApiError::bad_request("Missing field in JSON data: code"));
    };
    let session = checked_id("session", body.session)?.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let mut request = ExecuteRequest::new(code.as_str());
    request.silent = body.silent.unwrap_or(request.silent);
    request.store_history = body.store_history.unwrap_or(request.store_history);
    // By default, no client is expected to answer input requests.
    request.allow_stdin = body.allow_stdin.unwrap_or(false);
    request.stop_on_error = body.stop_on_error.unwrap_or(request.stop_on_error);
    let mut message = Message::new(request, &session);
    if let Some(msg_id) = checked_id("msg_id", body.msg_id)? {
        check_is_new(&kernel.executions(), &msg_id, &code).await?;
        message.header.msg_id = msg_id;
    }
    if let Some(cell_id) = checked_id("cellId", body.cell_id)? {
        message = message.with_metadata(Map::from_iter([("cellId".to_owned(), cell_id.into())]));
    }
    let wire = message.to_wire();
    if let Some(audit) = audit {
        audit.message(Channel::Shell, &wire).await;
    }
    let msg_id = message.header.msg_id;
    let sending = send(&gateway, &kernel, session.as_str().into(), wire);
    timeout(RECEIVE_TIMEOUT, sending)
        .await
        .map_err(|_| not_received(&msg_id))??;
    kernel.log().flushed().await;
    let execution = kernel.executions().get(&msg_id).await?;
    let location = address(&gateway, &id, &msg_id);
    let body = match &execution {
        Some(execution) => Json(model(&gateway, &id, execution)).into_response(),
        // The message with this id was not an execution.
        None => {
            let sent = json!({
                "msg_id": msg_id,
                "status": ExecutionStatus::Queued,
                "session": session,
                "url": location,
            });
            Json(sent).into_response()
        }
    };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response())
}

/// 409 if other code was sent to the kernel with this `msg_id`. The same code may be sent again and runs only once.
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
    // The task fails only if the process ends.
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
        "the kernel has not received the code within {} s, but may still receive it: repeat the request with the \
         msg_id {msg_id:?}, which does not run the code twice, or restart the kernel",
        RECEIVE_TIMEOUT.as_secs()
    );
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
}

/// Checks the length of an id that the client chose.
fn checked_id(field: &str, id: Option<String>) -> Result<Option<String>, ApiError> {
    match id {
        Some(id) if id.is_empty() => Err(ApiError::bad_request(format!("{field:?} is empty"))),
        Some(id) if id.len() > MAX_ID => Err(ApiError::bad_request(format!("{field:?} has more than {MAX_ID} bytes"))),
        id => Ok(id),
    }
}
