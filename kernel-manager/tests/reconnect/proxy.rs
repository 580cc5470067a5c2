//! A proxy whose connections a test can cut.

use std::io::Read as _;

use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::fixture::soon;

/// Forwards a local port, and can cut its connections.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// While true, new connections are accepted and not forwarded.
    holds: watch::Sender<bool>,
    cuts: watch::Sender<u32>,
    /// While true, the client's end stays open when the server closes its end.
    pub(crate) hides_close: watch::Sender<bool>,
    /// Number of connections accepted.
    accepted: watch::Sender<u32>,
    /// The accepting task; aborted on drop.
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub(crate) fn to(target: u16) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (holds, cuts, accepted) = (watch::Sender::new(false), watch::Sender::new(0), watch::Sender::new(0));
        let hides_close = watch::Sender::new(false);
        let (counter, held, cut, hidden) = (
            accepted.clone(),
            holds.subscribe(),
            cuts.subscribe(),
            hides_close.subscribe(),
        );
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (mut cut, mut held, mut hidden) = (cut.clone(), held.clone(), hidden.clone());
                cut.mark_unchanged();
                connections.spawn(async move {
                    tokio::select! {
                        released = held.wait_for(|held| !held) => drop(released.unwrap()),
                        _ = cut.changed() => return Ok(()),
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
                    {
                        let (mut from_client, mut to_client) = client.split();
                        let (mut from_server, mut to_server) = server.split();
                        let down = async {
                            copy(&mut from_server, &mut to_client).await?;
                            hidden.wait_for(|hidden| !hidden).await.unwrap();
                            to_client.shutdown().await
                        };
                        tokio::select! {
                            ended = async { tokio::try_join!(copy(&mut from_client, &mut to_server), down) } => {
                                return ended.map(drop);
                            }
                            _ = cut.changed() => {}
                        }
                    }
                    // Forwards what the client sent before the cut.
                    let mut sent = client.into_std()?;
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = sent.read(&mut buffer) {
                        server.write_all(&buffer[..length]).await?;
                    }
                    Ok::<(), std::io::Error>(())
                });
                counter.send_modify(|count| *count += 1);
            }
        });
        Self {
            port,
            holds,
            cuts,
            hides_close,
            accepted,
            _accepting: accepting,
        }
    }

    /// Cuts all connections and holds new ones until [`release`](Self::release).
    pub(crate) fn cut(&self) {
        self.holds.send_replace(true);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn release(&self) {
        self.holds.send_replace(false);
    }

    /// Waits until more than `before` connections were accepted.
    pub(crate) async fn reconnected(&self, before: u32) {
        soon(self.accepted.subscribe().wait_for(|count| *count > before))
            .await
            .unwrap();
    }

    pub(crate) fn count(&self) -> u32 {
        *self.accepted.borrow()
    }
}
