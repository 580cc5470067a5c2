//! Handles a single request: busy status, the kernel's handler, the reply, idle status.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;
use serde_json::json;

use super::Kernel;
use super::context::Context;
use super::request_queue::RequestQueue;
use super::state::{Incoming, KernelState, Origin};
use crate::channel::Channel;
use crate::content::{
    CommClose, ConnectReply, Content, ErrorOutput, ExecuteInput, ExecuteReply, ExecuteRequest, ExecutionState, Reply,
    ReplyError, Status, UnknownContent,
};
use crate::header::PROTOCOL_VERSION;
use crate::log_limiter::LogLimiter;
use crate::zmq::RouterSender;

pub(super) type DynKernel = Arc<dyn Kernel>;

/// Handles a request.
///
/// If the request is an execution that has `stop_on_error`, is not silent and fails, marks the requests in `queue` to
/// be aborted.
pub(super) async fn handle(
    kernel: &DynKernel,
    state: &Arc<KernelState>,
    socket: &RouterSender,
    incoming: Incoming,
    queue: &mut RequestQueue,
) {
    let header = incoming.message.header.clone();
    let identities = incoming.identities.clone();
    state.publish_content(Status::new(ExecutionState::Busy), &header).await;
    let mut origin = Origin::new(incoming.identities.clone(), header.clone());
    let reply = if let Content::ExecuteRequest(request) = incoming.message.content {
        origin.allow_stdin = request.allow_stdin;
        origin.silent = request.silent;
        let counts = request.store_history && !request.silent;
        let count = if counts {
            state.next_count.fetch_add(1, Ordering::Relaxed)
        } else {
            state.next_count.load(Ordering::Relaxed)
        };
        origin.execution_count = Some(count);
        let stops = request.stop_on_error && !request.silent;
        let origin = Arc::new(origin);
        let result = execute(kernel, state, &origin, request, counts).await;
        if stops && result.is_err() {
            // This happens before the failure is published, because requests that clients send in response must run.
            queue.abort_queued().await;
        }
        Some(conclude_execution(state, &origin, result).await.into())
    } else {
        let context = Context::new(state.clone(), Arc::new(origin));
        let reply = AssertUnwindSafe(reply_to(kernel, state, incoming, &context)).catch_unwind();
        reply
            .await
            .unwrap_or_else(|panic| Some(error_reply(&header.msg_type, &panic_error(&*panic))))
    };
    if let Some(reply) = reply {
        let origin = Origin::new(identities, header.clone());
        state.reply(socket, &origin, reply).await;
    }
    state.publish_content(Status::new(ExecutionState::Idle), &header).await;
}

/// Sends a reply that is already known, with busy and idle status around it.
pub(super) async fn reply_directly(state: &KernelState, socket: &RouterSender, incoming: Incoming, reply: Content) {
    let origin = Origin::new(incoming.identities, incoming.message.header);
    state
        .publish_content(Status::new(ExecutionState::Busy), &origin.header)
        .await;
    state.reply(socket, &origin, reply).await;
    state
        .publish_content(Status::new(ExecutionState::Idle), &origin.header)
        .await;
}

async fn execute(
    kernel: &DynKernel,
    state: &Arc<KernelState>,
    origin: &Arc<Origin>,
    request: ExecuteRequest,
    counts: bool,
) -> Result<ExecuteReply, Box<ReplyError>> {
    let execution_count = origin.execution_count;
    if !request.silent {
        let input = ExecuteInput {
            code: request.code.clone(),
            execution_count,
            ..ExecuteInput::default()
        };
        state.publish_content(input, &origin.header).await;
    }
    let context = Context::new(state.clone(), origin.clone());
    let running = AssertUnwindSafe(kernel.execute(&request, &context)).catch_unwind();
    let result = tokio::select! {
        biased;
        result = running => match result {
            Ok(result) => result,
            Err(panic) => Err(panic_error(&*panic)),
        },
        () = context.interrupted(), if kernel.cancels_on_interrupt() => {
            Err(ReplyError::new("KeyboardInterrupt", "the execution was interrupted"))
        }
    };
    if counts {
        let output = origin.take_result();
        state
            .history()
            .push(execution_count.unwrap_or_default(), request.code, output);
    }
    result.map_err(Box::new)
}

/// Returns the reply to an execution. Publishes an `error` message first if the execution failed.
async fn conclude_execution(
    state: &KernelState,
    origin: &Origin,
    result: Result<ExecuteReply, Box<ReplyError>>,
) -> Reply<ExecuteReply> {
    match result {
        Ok(mut reply) => {
            reply.execution_count = reply.execution_count.or(origin.execution_count);
            Reply::Ok(reply)
        }
        Err(mut error) => {
            let output = ErrorOutput {
                ename: error.ename.clone(),
                evalue: error.evalue.clone(),
                traceback: error.traceback.clone(),
                ..ErrorOutput::default()
            };
            state.publish_content(output, &origin.header).await;
            error.execution_count = error.execution_count.or(origin.execution_count);
            Reply::Error(*error)
        }
    }
}

/// Handles a request other than an execution. Returns its reply, or `None` for messages that have none.
async fn reply_to(kernel: &DynKernel, state: &KernelState, incoming: Incoming, context: &Context) -> Option<Content> {
    let message = incoming.message;
    let reply: Content = match message.content {
        Content::KernelInfoRequest(_) => {
            let mut info = kernel.info();
            if info.protocol_version.is_empty() {
                PROTOCOL_VERSION.clone_into(&mut info.protocol_version);
            }
            const SUBSHELLS: &str = "kernel subshells";
            if kernel.has_subshells() && !info.supports(SUBSHELLS) {
                info.supported_features.push(SUBSHELLS.to_owned());
            }
            Reply::Ok(info).into()
        }
        Content::CompleteRequest(request) => Reply::from(kernel.complete(&request, context).await).into(),
        Content::InspectRequest(request) => Reply::from(kernel.inspect(&request, context).await).into(),
        Content::IsCompleteRequest(request) => Reply::from(kernel.is_complete(&request, context).await).into(),
        Content::HistoryRequest(request) => Reply::from(kernel.history(&request, context).await).into(),
        Content::CommInfoRequest(request) => Reply::from(state.comms.info(request.target_name.as_deref())).into(),
        Content::ConnectRequest(_) => Reply::from(ConnectReply {
            shell_port: state.info.port(Channel::Shell),
            iopub_port: state.info.port(Channel::Iopub),
            stdin_port: state.info.port(Channel::Stdin),
            hb_port: state.info.port(Channel::Heartbeat),
            control_port: state.info.port(Channel::Control),
            ..ConnectReply::default()
        })
        .into(),
        Content::DebugRequest(request) => kernel.debug(request, context).await.into(),
        Content::UsageRequest(_) => kernel.usage(context).await.into(),
        Content::CommOpen(open) => {
            let comm_id = open.comm_id.clone();
            if state.comms.has_room() {
                // Registers the comm first, so that the kernel's handler can close it.
                state.comms.add(&comm_id, &open.target_name);
                if kernel.comm_open(open, message.buffers, context).await {
                    return None;
                }
            }
            let close = CommClose {
                comm_id,
                ..CommClose::default()
            };
            context.comm_close(close).await;
            return None;
        }
        Content::CommMsg(comm_msg) => {
            kernel.comm_msg(comm_msg, message.buffers, context).await;
            return None;
        }
        Content::CommClose(close) => {
            state.comms.remove(&close.comm_id);
            kernel.comm_close(close, message.buffers, context).await;
            return None;
        }
        Content::Invalid(invalid) => {
            static MALFORMED: LogLimiter = LogLimiter::new();
            if let Some(suppressed) = MALFORMED.due() {
                tracing::warn!(
                    msg_type = invalid.msg_type,
                    problem = invalid.problem,
                    suppressed,
                    "malformed request"
                );
            }
            error_reply(&invalid.msg_type, &ReplyError::new("MalformedRequest", invalid.problem))
        }
        _ => return kernel.other(&message, context).await,
    };
    Some(reply)
}

/// Returns an error reply to a request of any type.
pub(super) fn error_reply(msg_type: &str, error: &ReplyError) -> Content {
    let content = json!({
        "status": "error",
        "ename": error.ename,
        "evalue": error.evalue,
        "traceback": error.traceback,
    });
    let stem = msg_type.strip_suffix("_request").unwrap_or(msg_type);
    UnknownContent::new(format!("{stem}_reply"), &content).into()
}

fn panic_error(panic: &(dyn Any + Send)) -> ReplyError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    ReplyError::new("KernelPanic", text)
}
