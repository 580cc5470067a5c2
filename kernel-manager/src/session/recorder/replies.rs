use std::sync::Arc;

use chrono::Utc;
use jupyter_protocol::zmq::{DealerReceiver, Refused, Verifier};
use jupyter_protocol::{Channel, Signer};
use tokio::sync::Notify;

use super::reconnect::Pauses;
use super::{LARGE, Recording};

/// Records the messages from one socket: shell, control or stdin.
pub(super) async fn record_replies(
    recording: Arc<Recording>,
    channel: Channel,
    mut socket: DealerReceiver,
    (address, identity): (String, String),
    signer: Signer,
    reconnected: Arc<Notify>,
) {
    let mut pauses = Pauses::new();
    let mut verifier = Verifier::new(channel, signer.clone());
    loop {
        recording.log.room().await;
        let broken = match verifier.admit(socket.recv().await).await {
            Ok(message) => {
                let is_large = message.size() >= LARGE;
                recording.record_reply(channel, message, Utc::now());
                if is_large {
                    recording.log.flushed().await;
                }
                false
            }
            Err(Refused::Message(message)) => {
                socket.refused(&message);
                recording.refused.invalid();
                false
            }
            Err(Refused::Invalid) => {
                recording.refused.invalid();
                false
            }
            Err(Refused::Skipped(_)) => {
                recording.refused.skipped();
                // The skipped message may be a reply that a client waits for.
                reconnected.notify_one();
                false
            }
            Err(Refused::Broken) => true,
        };
        if broken {
            // Close the socket first, because some kernels refuse a second connection with the same identity.
            drop(socket);
            socket = recording
                .reconnect_dealer(channel, &address, &identity, &signer, &mut pauses)
                .await;
            // Replies may have been lost with the connection.
            reconnected.notify_one();
        }
    }
}
