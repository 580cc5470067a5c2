use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::ZmtpError;
use super::endpoint::{Endpoint, Writer};
use super::frame::{FrameReader, FrameWriter, Incoming};
use super::handshake::SocketType;
use super::listener::{OwnedTask, listen};
use super::router::write_all;

/// How many messages wait for one subscriber, besides what the system's buffers hold.
const OUTGOING: usize = 1_000;

/// How many topics one subscriber may have.
const MAX_TOPICS: usize = 1_024;

type Welcome = dyn Fn(&[u8]) -> Option<Vec<Bytes>> + Send + Sync;

/// A bound XPUB socket: each message goes to all who subscribed to a beginning of its first frame.
///
/// A subscriber that is slow makes the publisher wait, so nothing is dropped; one that takes nothing at all for the
/// publisher's patience is disconnected, so that it stops nobody for longer.
pub struct Publisher {
    subscribers: Arc<Subscribers>,
    bound: Endpoint,
    patience: Duration,
    _task: OwnedTask,
}

#[derive(Default)]
struct Subscribers(Mutex<Vec<Arc<Subscriber>>>);

struct Subscriber {
    topics: Mutex<Vec<Bytes>>,
    outgoing: mpsc::Sender<Vec<Bytes>>,
    disconnect: Notify,
}

impl Subscribers {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Subscriber>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber {
    fn topics(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, topic: &[u8]) -> bool {
        self.topics()
            .iter()
            .any(|beginning| topic.starts_with(beginning))
    }
}

impl Publisher {
    /// Binds to an address such as `tcp://127.0.0.1:0` or `ipc:///path`.
    ///
    /// `patience` is how long a subscriber may take nothing before it is disconnected. `welcome` makes the message that
    /// a subscriber gets first for each topic that it subscribes to (JEP 65), or `None`.
    ///
    /// # Errors
    /// [`ZmtpError::Endpoint`] for a bad address, [`ZmtpError::Io`] where the system refuses: the port is taken, say.
    pub async fn bind(
        endpoint: &str,
        patience: Duration,
        welcome: impl Fn(&[u8]) -> Option<Vec<Bytes>> + Send + Sync + 'static,
    ) -> Result<Self, ZmtpError> {
        let subscribers = Arc::new(Subscribers::default());
        let all = subscribers.clone();
        let welcome: Arc<Welcome> = Arc::new(welcome);
        let (task, bound) = listen(
            endpoint,
            SocketType::Xpub,
            move |reader, writer, _identity| serve(reader, writer, all.clone(), welcome.clone()),
        )
        .await?;
        Ok(Self {
            subscribers,
            bound,
            patience,
            _task: task,
        })
    }

    /// The address that was bound, with its real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.bound
    }

    /// Sends to all who subscribed, waiting for each that is slow, up to the publisher's patience; who is slower is
    /// disconnected.
    pub async fn publish(&self, frames: Vec<Bytes>) {
        let Some(topic) = frames.first() else { return };
        let subscribers: Vec<_> = self
            .subscribers
            .lock()
            .iter()
            .filter(|subscriber| subscriber.wants(topic))
            .cloned()
            .collect();
        let mut end = None;
        for subscriber in subscribers {
            // Nobody waits in the usual case, so the clock is not asked.
            let Err(mpsc::error::TrySendError::Full(frames)) =
                subscriber.outgoing.try_send(frames.clone())
            else {
                continue;
            };
            let end = *end.get_or_insert_with(|| Instant::now() + self.patience);
            if timeout_at(end, subscriber.outgoing.send(frames))
                .await
                .is_err()
            {
                subscriber.disconnect.notify_one();
                self.subscribers
                    .lock()
                    .retain(|other| !Arc::ptr_eq(other, &subscriber));
            }
        }
    }
}

async fn serve(
    mut reader: FrameReader,
    writer: Writer,
    subscribers: Arc<Subscribers>,
    welcome: Arc<Welcome>,
) {
    let (outgoing, mut to_write) = mpsc::channel(OUTGOING);
    let this = Arc::new(Subscriber {
        topics: Mutex::default(),
        outgoing,
        disconnect: Notify::new(),
    });
    subscribers.lock().push(this.clone());
    let read = async {
        while let Ok(incoming) = reader.next().await {
            let Some((subscribes, topic)) = subscription(incoming) else {
                continue;
            };
            if subscribes {
                {
                    // Under the lock, so that no published message overtakes the welcome.
                    let mut topics = this.topics();
                    if topics.len() >= MAX_TOPICS {
                        return;
                    }
                    if let Some(frames) = welcome(&topic) {
                        // A subscriber that takes nothing does not need its welcome either.
                        let _ = this.outgoing.try_send(frames);
                    }
                    topics.push(topic);
                }
            } else {
                let mut topics = this.topics();
                if let Some(index) = topics.iter().position(|known| *known == topic) {
                    topics.remove(index);
                }
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write_all(FrameWriter::new(writer), &mut to_write) => {}
        () = this.disconnect.notified() => {}
    }
    subscribers
        .lock()
        .retain(|other| !Arc::ptr_eq(other, &this));
}

/// A subscription (true) or its end, which ZMTP 3.0 sends as a message and 3.1 as a command.
fn subscription(incoming: Incoming) -> Option<(bool, Bytes)> {
    match incoming {
        Incoming::Message(frames) => {
            let [frame] = &frames[..] else { return None };
            match frame.first()? {
                1 => Some((true, frame.slice(1..))),
                0 => Some((false, frame.slice(1..))),
                _ => None,
            }
        }
        Incoming::Command(body) => {
            if body.starts_with(b"\x09SUBSCRIBE") {
                Some((true, body.slice(10..)))
            } else if body.starts_with(b"\x06CANCEL") {
                Some((false, body.slice(7..)))
            } else {
                None
            }
        }
    }
}
