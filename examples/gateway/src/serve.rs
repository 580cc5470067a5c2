//! HTTP/1.1 over TCP, or over TLS, without Nagle's algorithm and with bounds on what a client can hold.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::counted::Counted;
use crate::trusted_header::PeerAddress;
use crate::wrong_tokens::ClientAddress;
use crate::{Gateway, router};

/// Longest request head that is read, in bytes. The [limits](crate::limits) are lower, and answer with an explanation.
const MAX_HEAD: usize = 256 << 10;
/// The most headers of a request.
const MAX_HEADER_COUNT: usize = 200;
/// How long requests may continue after the gateway is closed.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted, for example because of too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the gateway until it is [closed](Gateway::close), then gives requests and WebSocket connections 5 s to end.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>) {
    let router = router(gateway.clone());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(gateway.options().head_deadline)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADER_COUNT);
    let tls = gateway.options().tls.clone();
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(
        gateway.options().max_connections.min(Semaphore::MAX_PERMITS),
    ));
    loop {
        let accepting = async {
            let permit = permit(&room).await;
            (permit, accept(&listener).await)
        };
        let (permit, (stream, address)) = tokio::select! {
            accepted = accepting => accepted,
            () = gateway.closing() => break,
        };
        if let Err(error) = set_up(&stream, gateway.options().write_deadline) {
            debug!(%error, "cannot set the options of a connection");
        }
        let stream = Counted {
            stream,
            _permit: permit,
        };
        // The routes need the peer's address.
        let router = router
            .clone()
            .layer(Extension(ClientAddress::from(address.ip())))
            .layer(Extension(PeerAddress(address.ip())));
        let (http, gateway) = (http.clone(), gateway.clone());
        match tls.clone() {
            None => connections.spawn(serve_connection(http, stream, router, gateway)),
            Some(tls) => connections.spawn(async move {
                let accepted = tokio::select! {
                    accepted = tls.accept(stream) => accepted,
                    () = gateway.closing() => None,
                };
                if let Some((stream, client)) = accepted {
                    let router = match client {
                        Some(client) => router.layer(Extension(client)),
                        None => router,
                    };
                    serve_connection(http, stream, router, gateway).await;
                }
            }),
        };
    }
    drop(listener);
    connections.close();
    gateway.clients.close();
    let ending = async {
        connections.wait().await;
        gateway.clients.wait().await;
    };
    if timeout(SHUTDOWN_DEADLINE, ending).await.is_err() {
        info!("some connections did not end in time");
    }
}

/// Serves a connection until it ends, or the gateway is closed.
async fn serve_connection(
    http: http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    gateway: Arc<Gateway>,
) {
    let connection = http
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = gateway.closing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended");
    }
}

/// Sets the options of a connection. A response may last as long as a kernel runs, so the write timeout ends
/// connections whose client reads nothing.
fn set_up(stream: &TcpStream, write_deadline: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(stream, u32::try_from(write_deadline.as_millis()).unwrap_or(u32::MAX))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_deadline;
    Ok(())
}

/// Waits until there may be another connection. The system's queue of the listener holds those that wait.
async fn permit(room: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if room.available_permits() == 0 {
        warn!("there are as many connections as --max-connections allows; the next one waits until one is closed");
    }
    // Nothing closes the semaphore.
    room.clone().acquire_owned().await.ok()
}

/// The next connection. Skips connections that failed before they were accepted.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
