//! `GET /api/kernels/{id}/channels`: a client's WebSocket on a kernel.
//!
//! A connection has two independent halves. The *inbound* half parses the client's messages and sends them to the
//! kernel; the *outbound* half reads the kernel's log and writes the entries for this client.
//!
//! Pongs show what a client has received: each Ping carries the number of the last entry sent before it, and the Pong
//! follows once the client has read that entry. A session that reconnects resumes there, after a replay of executions
//! that it may have received only partly. Clients of the resume protocol (`docs/src/resume-protocol.md`) track their
//! own position.

mod acknowledgement;
mod feed;
mod format;
mod inbound;
mod messages;
mod outbound;

use std::io;
use std::pin::pin;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use gateway_client::resume::{self, Notice, Start};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jupyter_protocol::KernelId;
use jupyter_protocol::codec::websocket_v1;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep, timeout};
use tracing::{Instrument, debug, info, info_span};
use tungstenite::Error;
use tungstenite::handshake::server::create_response_with_body;
use utoipa::IntoParams;

use crate::Gateway;
use crate::audit::CodeAudit;
use crate::authorization::Permission;
use crate::error::ApiError;
use crate::routes::KernelPath;
use acknowledgement::Acknowledgement;
use feed::Feed;
use format::{Format, Peer};

/// Capacity of the queue of control frames from the inbound to the outbound half. If it is full, the inbound half
/// waits.
const CONTROL_FRAMES: usize = 16;
/// How long a reconnecting session waits for the end of its old connection, which may be silent forever.
const LEAVING: Duration = Duration::from_millis(200);
/// How long a client may take to answer a Close, and to read what is being written when the gateway shuts down.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// The same if the client's permission ends.
const REVOKED_DEADLINE: Duration = Duration::from_secs(1);

/// Why the gateway ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ShuttingDown,
    /// The client's permission to use the kernel has ended.
    Revoked,
}

impl Ending {
    /// The code of the Close frame (RFC 6455 section 7.4.1). JupyterLab reconnects after any but 1000 and 1001.
    fn code(self, format: Format) -> u16 {
        match self {
            Self::ShuttingDown if format == Format::Resume => 1001,
            Self::ShuttingDown => 1012,
            Self::Revoked => 1008,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::ShuttingDown => "the gateway is shutting down",
            Self::Revoked => "the permission to use the kernel has ended",
        }
    }

    /// How long the client may take afterwards.
    fn deadline(self) -> Duration {
        match self {
            Self::ShuttingDown => CLOSE_DEADLINE,
            Self::Revoked => REVOKED_DEADLINE,
        }
    }
}

/// Waits until the gateway closes or the permission ends.
async fn ending(gateway: &Arc<Gateway>, permission: Permission) -> Ending {
    tokio::select! {
        biased;
        () = gateway.closing() => Ending::ShuttingDown,
        () = permission.ended(gateway.clone()) => Ending::Revoked,
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ChannelsQuery {
    /// Identifies the client. A client that reconnects with the same session_id receives the missed messages, and its
    /// older connection is closed.
    #[param(nullable = false)]
    session_id: Option<String>,
    /// Where to begin, with the subprotocol v1.resume.kernelmux: a cursor epoch:seq, start or head.
    #[param(nullable = false)]
    resume: Option<String>,
}

/// A WebSocket for the kernel's messages.
///
/// The subprotocol is v1.resume.kernelmux or v1.kernel.websocket.jupyter.org. Without a subprotocol, messages have the
/// legacy formats.
///
/// An execute_request with a known msg_id and {"kernelmux": {"follow": true}} in its metadata replays that execution
/// and makes this session receive its replies and input requests. If another session answers an input request, this
/// session receives kernelmux_answered on iopub.
#[utoipa::path(
    get, path = "/api/kernels/{id}/channels", tag = "kernels", operation_id = "channels",
    params(KernelPath, ChannelsQuery),
    responses(
        (status = 101, description = "The WebSocket is open"),
        (status = 400, description = "The request is malformed, or not a WebSocket handshake"),
        (status = 403, description = "The request is from a page of another origin"),
        (status = 404, description = "There is no such kernel or log"),
    ),
)]
pub(crate) async fn channels(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    Query(query): Query<ChannelsQuery>,
    Extension(permission): Extension<Permission>,
    request: Request,
) -> Response {
    open(gateway, &id, query, permission, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

async fn open(
    gateway: Arc<Gateway>,
    id: &str,
    query: ChannelsQuery,
    permission: Permission,
    mut request: Request,
) -> Result<Response, ApiError> {
    let subprotocol = chosen_subprotocol(request.headers());
    let no_kernel = || ApiError::not_found(format!("Kernel does not exist: {id}"));
    let kernel_id: KernelId = id.parse().map_err(|_| no_kernel())?;
    let kernel = gateway.manager.get(kernel_id);
    let log = match &kernel {
        Some(kernel) => kernel.log().clone(),
        // Only clients of the resume protocol can read the log of a past kernel.
        None if subprotocol == Some(resume::SUBPROTOCOL) => {
            gateway.manager.logs().find(kernel_id).await?.ok_or_else(no_kernel)?
        }
        None => return Err(no_kernel()),
    };
    let mut response = create_response_with_body(&request, Body::empty)
        .map_err(|error| ApiError::bad_request(format!("this address takes WebSocket connections only: {error}")))?;
    let session = query
        .session_id
        .filter(|session| !session.is_empty())
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let start = match &query.resume {
        Some(start) => start
            .parse()
            .map_err(|error| ApiError::bad_request(format!("resume: {error}")))?,
        None => Start::Head,
    };
    let peer = Peer::of(request.headers());
    let audit = kernel
        .as_ref()
        .and_then(|kernel| CodeAudit::new(&gateway, request.extensions(), kernel));
    let upgrade = hyper::upgrade::on(&mut request);
    if let Some(subprotocol) = subprotocol {
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    // Not a part of the request's span, which ends earlier.
    let span = info_span!(parent: None, "client", %kernel_id, session);
    let format = Format::new(subprotocol, peer);
    if let Some(kernel) = &kernel
        && format != Format::Resume
    {
        kernel.session_left(&session, LEAVING).await;
    }
    // Attached before the handshake is answered, so that no later output is missed.
    let (feed, hello) = match kernel {
        Some(kernel) if format.is_shared() => (Feed::Kernel(kernel.attach_shared(&session)), None),
        Some(kernel) if format != Format::Resume => (Feed::Kernel(kernel.attach(&session)), None),
        kernel => {
            let (feed, hello) = Feed::resume(&log, kernel.as_ref(), &session, start);
            (feed, Some(hello))
        }
    };
    let clients = gateway.clients.clone();
    let position = gateway.positions.add(log, feed.position());
    let connection = Connection {
        acknowledgement: Arc::new(Acknowledgement::new(feed.client(), Some(position))),
        feed,
        hello,
        format,
        audit,
    };
    let serving = serve(gateway, permission, upgrade, connection);
    clients.spawn(
        async move {
            match serving.await {
                Ok(reason) => info!(reason, "client gone"),
                Err(error) => info!(%error, "client gone"),
            }
        }
        .instrument(span),
    );
    Ok(response)
}

/// The best subprotocol that the client offers.
fn chosen_subprotocol(headers: &HeaderMap) -> Option<&'static str> {
    let offers: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    [resume::SUBPROTOCOL, websocket_v1::SUBPROTOCOL]
        .into_iter()
        .find(|subprotocol| offers.contains(subprotocol))
}

/// A client's connection.
struct Connection {
    feed: Feed,
    /// The first frame.
    hello: Option<Notice>,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    audit: Option<CodeAudit>,
}

/// Serves the connection to its end, and returns why it ended.
async fn serve(
    gateway: Arc<Gateway>,
    permission: Permission,
    upgrade: OnUpgrade,
    connection: Connection,
) -> Result<&'static str, Error> {
    let Connection {
        feed,
        hello,
        format,
        acknowledgement,
        audit,
    } = connection;
    let stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    debug!(?format, "client connected");
    let (reading, writing) = tokio::io::split(stream);
    let (control, control_frames) = mpsc::channel(CONTROL_FRAMES);
    let inbound = inbound::run(reading, feed.client(), format, acknowledgement.clone(), control, audit);
    let outbound = outbound::run(
        outbound::Frames::new(writing, gateway.options().write_deadline),
        feed,
        hello,
        format,
        acknowledgement,
        control_frames,
        ending(&gateway, permission.clone()),
    );
    let mut inbound = pin!(inbound);
    // Both halves are futures of this task, so whichever ends first ends the other.
    tokio::select! {
        ended = &mut inbound => ended,
        ended = outbound => {
            let reason = ended?;
            // Closing with unread data would reset the connection and lose the Close frame.
            let deadline = if reason == Ending::Revoked.reason() { REVOKED_DEADLINE } else { CLOSE_DEADLINE };
            let _ = timeout(deadline, inbound).await;
            Ok(reason)
        }
        reason = async {
            let ending = ending(&gateway, permission).await;
            sleep(ending.deadline()).await;
            ending.reason()
        } => Ok(reason),
    }
}
