//! The sending halves of the connections to a kernel.

use jupyter_protocol::zmq::DealerSender;
use jupyter_protocol::{Channel, Signer};
use kernel_provider::agent::MessageSender;
use tokio::sync::Mutex as AsyncMutex;

use crate::session::agent_position::Numbering;

/// The sending halves; one is missing while its connection is lost. Each has its own lock, so that a full shell socket
/// delays neither answers on stdin nor interrupts on control.
#[derive(Default)]
pub(super) struct Senders {
    shell: AsyncMutex<Option<Sender>>,
    control: AsyncMutex<Option<Sender>>,
    stdin: AsyncMutex<Option<Sender>>,
}

impl Senders {
    pub(super) fn of(&self, channel: Channel) -> &AsyncMutex<Option<Sender>> {
        match channel {
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
            _ => &self.shell,
        }
    }

    pub(super) async fn set(&self, channel: Channel, sender: Option<Sender>) {
        *self.of(channel).lock().await = sender;
    }

    pub(super) async fn clear(&self) {
        for channel in [Channel::Shell, Channel::Control, Channel::Stdin] {
            self.set(channel, None).await;
        }
    }
}

/// Sends messages to the kernel. Signs them, except for an agent, which signs them itself.
pub(super) struct Sender {
    pub(super) signer: Signer,
    pub(super) to: Destination,
}

pub(super) enum Destination {
    Socket(DealerSender),
    Agent(MessageSender, Numbering),
    #[cfg(feature = "testing")]
    Simulated(
        Channel,
        tokio::sync::mpsc::Sender<(Channel, jupyter_protocol::WireMessage)>,
    ),
}
