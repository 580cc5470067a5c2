//! `GET /api/kernels/{id}/channels`: a client's WebSocket on a kernel.
//!
//! A connection is two halves. The *inbound* half takes the client's messages apart and hands them to the kernel; the
//! *outbound* half reads the kernel's log and writes what is for this client. Neither knows how far the other is.
//!
//! What a client has received is known from its Pongs: each Ping carries the number of the last entry sent before it,
//! and a Pong returns after that entry was read. When the session comes back, it reads on from there.

mod acknowledgement;
mod format;
mod inbound;
mod messages;
mod outbound;

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fastwebsockets::WebSocketError;
use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use jupyter_protocol::codec::websocket_v1;
use kernel_provider::KernelId;
use kernel_provider::session::Attachment;
use serde::Deserialize;
use tokio::sync::mpsc;
use tracing::{Instrument, debug, info, info_span};

use crate::Gateway;
use crate::error::ApiError;
use acknowledgement::Acknowledgement;
use format::{Format, Peer};

/// How many control frames may wait for the outbound half; the inbound half waits where there are more.
const CONTROL_FRAMES: usize = 16;

#[derive(Deserialize)]
pub(crate) struct ChannelsQuery {
    session_id: Option<String>,
}

/// Answers 101 and serves the connection; 404 for an unknown kernel, 400 for what is no WebSocket handshake.
pub(crate) async fn channels(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    Query(query): Query<ChannelsQuery>,
    mut request: Request,
) -> Response {
    let kernel = id.parse::<KernelId>().ok().and_then(|id| gateway.manager.get(id));
    let Some(kernel) = kernel else {
        return ApiError::new(StatusCode::NOT_FOUND, format!("Kernel does not exist: {id}")).into_response();
    };
    if !is_upgrade_request(&request) {
        return ApiError::new(StatusCode::BAD_REQUEST, "this address takes WebSocket connections only").into_response();
    }
    let session = query
        .session_id
        .filter(|session| !session.is_empty())
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let peer = Peer::of(request.headers());
    let (response, upgraded) = match upgrade(&mut request) {
        Ok(upgrade) => upgrade,
        Err(error) => {
            return ApiError::new(StatusCode::BAD_REQUEST, error.to_string()).into_response();
        }
    };
    let mut response = response.map(axum::body::Body::new);
    let v1 = offers_v1(request.headers());
    if v1 {
        response.headers_mut().insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(websocket_v1::SUBPROTOCOL),
        );
    }
    let format = Format::new(v1, peer);
    let span = info_span!("client", kernel_id = %kernel.id(), session);
    // Attached before the handshake is answered, so that nothing the kernel says from then on is missed.
    let attachment = kernel.attach(&session);
    let serving = serve(gateway, attachment, format, upgraded);
    tokio::spawn(
        async move {
            match serving.await {
                Ok(reason) => info!(reason, "client gone"),
                Err(error) => info!(%error, "client gone"),
            }
        }
        .instrument(span),
    );
    response
}

fn offers_v1(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|offer| offer.trim() == websocket_v1::SUBPROTOCOL)
}

/// Serves the connection to its end, and says why it ended.
async fn serve(
    gateway: Arc<Gateway>,
    attachment: Attachment,
    format: Format,
    upgraded: UpgradeFut,
) -> Result<&'static str, WebSocketError> {
    let websocket = upgraded.await?;
    debug!(?format, "client connected");
    let (reading, writing) = tokio::io::split(websocket.into_inner());
    let acknowledgement = Arc::new(Acknowledgement::new(attachment.client()));
    let (control, control_frames) = mpsc::channel(CONTROL_FRAMES);
    let inbound = inbound::run(reading, attachment.client(), format, acknowledgement.clone(), control);
    let outbound = outbound::run(writing, attachment, format, acknowledgement, control_frames);
    // Whichever half ends first ends the other: both are futures of this one task.
    tokio::select! {
        ended = inbound => ended,
        ended = outbound => ended.map_err(WebSocketError::from),
        () = gateway.closing() => Ok("the gateway is shutting down"),
    }
}
