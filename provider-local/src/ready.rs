//! Waits until a kernel's sockets accept connections.

use std::io;
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, Transport};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::endpoints::CHANNELS;

/// Waits until all of the kernel's sockets accept connections, without a time limit.
///
/// `socket_created` must be notified when a Unix socket is created. Without it, and for TCP ports, which have no such
/// event, the sockets are polled: the pause is a hundredth of the time that has passed, but at least 1 ms and at most
/// 10 ms.
pub(crate) async fn wait_for_sockets(connection: &ConnectionInfo, socket_created: Option<&Notify>) {
    let started = Instant::now();
    for channel in CHANNELS {
        let path = connection.socket_path(channel);
        if let Some(path) = &path {
            while !path.exists() {
                match socket_created {
                    Some(socket_created) => socket_created.notified().await,
                    None => sleep(pause(started)).await,
                }
            }
        } else if connection.port(channel) == 0 {
            continue;
        }
        // A Unix socket exists shortly before it is listened on.
        while connect(connection, connection.port(channel)).await.is_err() {
            sleep(pause(started)).await;
        }
    }
}

/// The pause before the next attempt.
fn pause(started: Instant) -> Duration {
    (started.elapsed() / 1_000).clamp(Duration::from_millis(1), Duration::from_millis(10))
}

async fn connect(connection: &ConnectionInfo, port: u16) -> io::Result<()> {
    match connection.transport {
        Transport::Ipc => UnixStream::connect(format!("{}-{port}", connection.ip)).await.map(drop),
        _ => TcpStream::connect((connection.ip.as_str(), port)).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::fs::inotify::WatchFlags;

    use super::*;
    use crate::endpoints;
    use crate::events::Events;
    use crate::ports::PortAllocator;

    #[tokio::test]
    async fn waits_for_five_tcp_ports() {
        let mut connection = ConnectionInfo::default();
        let _held = PortAllocator::new(None).reserve_ports(&mut connection).unwrap();
        let mut ready = Box::pin(wait_for_sockets(&connection, None));
        let mut listeners = Vec::new();
        for channel in CHANNELS {
            let early = tokio::time::timeout(Duration::from_millis(5), &mut ready).await;
            assert!(early.is_err(), "ready before {channel:?}");
            let address = (connection.ip.as_str(), connection.port(channel));
            listeners.push(tokio::net::TcpListener::bind(address).await.unwrap());
        }
        ready.await;
    }

    #[tokio::test]
    async fn waits_for_five_unix_sockets_by_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut connection = ConnectionInfo::default();
        endpoints::set_unix_sockets(&mut connection, dir.path());
        let events = Events::new().unwrap();
        let socket_created = Arc::new(Notify::new());
        let _watch = events.watch(dir.path(), WatchFlags::CREATE, &socket_created).unwrap();
        let ready = tokio::spawn({
            let (connection, socket_created) = (connection.clone(), Arc::clone(&socket_created));
            async move { wait_for_sockets(&connection, Some(&socket_created)).await }
        });
        let mut listeners = Vec::new();
        for channel in CHANNELS {
            tokio::task::yield_now().await;
            assert!(!ready.is_finished(), "ready before {channel:?}");
            let path = connection.socket_path(channel).unwrap();
            listeners.push(tokio::net::UnixListener::bind(path).unwrap());
        }
        ready.await.unwrap();
    }
}
