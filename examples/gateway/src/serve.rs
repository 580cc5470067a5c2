//! HTTP/1.1 over TCP, as a gateway needs it: without Nagle's delay, and with a bound on what a client can hold.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::wrong_tokens::ClientAddress;
use crate::{Gateway, router};

/// The longest head of a request that is read at all, in bytes. The [limits](crate::limits) are lower, and tell why.
const MAX_HEAD: usize = 256 << 10;
/// The most headers.
const MAX_HEADER_COUNT: usize = 200;
/// How long requests may go on once the gateway is to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait where no connection can be accepted, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the gateway until it is [closed](Gateway::close); then lets requests and WebSocket connections end for 5 s.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>) {
    let router = router(gateway.clone());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(gateway.options.head_deadline)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADER_COUNT);
    let connections = TaskTracker::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = gateway.closing() => break,
        };
        if let Err(error) = set_up(&stream, gateway.options.write_deadline) {
            debug!(%error, "a connection cannot be set up as it should be");
        }
        // So that the routes know whose the request is.
        let service = router.clone().layer(Extension(ClientAddress::from(address.ip())));
        let connection = http
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .with_upgrades();
        let gateway = gateway.clone();
        connections.spawn(async move {
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
        });
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

/// An answer may be as long as a kernel runs, so that who takes nothing of it is noticed by the connection itself.
fn set_up(stream: &TcpStream, write_deadline: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(stream, u32::try_from(write_deadline.as_millis()).unwrap_or(u32::MAX))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_deadline;
    Ok(())
}

/// The next connection. A connection that failed before it was accepted is passed over.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
