//! Connects the recorder to a simulated kernel, without sockets.

use chrono::Utc;
use jupyter_protocol::{Channel, Signer, WireMessage};
use tokio::sync::mpsc;

use super::senders::{Destination, Sender};
use super::{ConnectionState, Recorder, SendError};
use crate::session::execution_state::StatusFollower;

impl Recorder {
    /// Sends messages for the kernel to the channel `kernel` instead of sockets, and replaces the previous connection.
    pub(crate) async fn connect_simulated(&self, kernel: &mpsc::Sender<(Channel, WireMessage)>) {
        self.disconnect().await;
        for channel in [Channel::Shell, Channel::Control, Channel::Stdin] {
            let sender = Sender {
                signer: Signer::unsigned(),
                to: Destination::Simulated(channel, kernel.clone()),
            };
            self.recording.senders.set(channel, Some(sender)).await;
        }
        self.recording.connection_state.send_replace(ConnectionState::Connected);
    }

    /// Recovers pending executions, as after each new connection.
    pub(crate) async fn recover(&self) -> Result<(), SendError> {
        self.recording.recover().await
    }

    /// Records messages that arrived together on iopub.
    pub(crate) fn on_published(&self, messages: &[WireMessage]) {
        let mut status = StatusFollower::default();
        // Mark the kernel as having been idle. Otherwise, every call could append `Lifecycle::Idle`.
        status.idle_for_the_first_time();
        self.recording.record_published(messages, &mut status, Utc::now());
    }

    /// Records messages that arrived on shell, control or stdin.
    pub(crate) fn on_reply(&self, channel: Channel, message: WireMessage) {
        self.recording.record_reply(channel, message, Utc::now());
    }
}
