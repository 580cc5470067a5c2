//! What the listening sockets share: a task that accepts, and one for each connection, all ended with the socket.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::ZmtpError;
use super::endpoint::{Endpoint, Writer};
use super::frame::FrameReader;
use super::handshake::{SocketType, shake_hands};

/// How many peers one socket has at most. A kernel has one connection for each client.
const MAX_PEERS: usize = 1_024;

/// How long a peer may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Ends a task when dropped.
pub(super) struct OwnedTask(AbortHandle);

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Binds and hands each connection, once it has shaken hands, to `serve`, whose end is the connection's end.
pub(super) async fn listen<F, Served>(
    endpoint: &str,
    socket_type: SocketType,
    serve: F,
) -> Result<(OwnedTask, Endpoint), ZmtpError>
where
    F: Fn(FrameReader, Writer, Bytes) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send,
{
    let address: Endpoint = endpoint.parse()?;
    let (listener, bound) = address.bind().await.map_err(|source| ZmtpError::Io {
        action: "cannot bind",
        endpoint: endpoint.to_owned(),
        source,
    })?;
    let serve = Arc::new(serve);
    let peers = Arc::new(Semaphore::new(MAX_PEERS));
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(place) = peers.clone().acquire_owned().await else {
                return;
            };
            let Ok((reader, writer)) = listener.accept().await else {
                // Out of file descriptors, or the peer went before it was accepted: let others have a turn.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let serve = serve.clone();
            connections.spawn(async move {
                let _place = place;
                if let Ok(Ok((reader, writer, identity))) =
                    timeout(HANDSHAKE, shake_hands(reader, writer, socket_type, b"")).await
                {
                    serve(reader, writer, identity).await;
                }
            });
        }
    });
    Ok((OwnedTask(task.abort_handle()), bound))
}
