use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use jupyter_protocol::Channel;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDrop;
use uuid::Uuid;

use super::frame::{CHANNELS, Outgoing, channel_index};
use super::incoming::{Incoming, Received};
use super::session::{Session, run};
use super::{Answer, Connect, Control, ProcessPhase, Refused, Welcome};
use crate::Phase;

/// The agent and its kernel have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's agent is gone; restart the kernel")]
pub struct LinkClosed;

/// A command to the task of a link.
#[derive(Debug)]
pub(super) enum Command {
    Control(Control, oneshot::Sender<Answer>),
    Read {
        after: u64,
        deliver: mpsc::UnboundedSender<Received>,
    },
    Consumed(u64),
    Take(u64),
    Acknowledge(u64),
    DropUnsent,
}

/// A link to one agent, which reconnects automatically.
pub struct Link {
    commands: mpsc::UnboundedSender<Command>,
    outgoing: [mpsc::Sender<Outgoing>; 3],
    welcome: watch::Receiver<Option<Welcome>>,
    phase: watch::Receiver<ProcessPhase>,
    refused: watch::Receiver<Option<Refused>>,
    is_connected: Arc<AtomicBool>,
    closed: CancellationToken,
    _task: AbortOnDrop,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("phase", &*self.phase.borrow())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a link without waiting for the connection; requests wait for it. Must be called in a tokio runtime.
    #[must_use]
    pub fn open(connect: Arc<dyn Connect>) -> Self {
        let (commands, received) = mpsc::unbounded_channel();
        let [(shell, for_shell), (control, for_control), (stdin, for_stdin)] = CHANNELS.map(|_| mpsc::channel(1));
        let (welcome, last_welcome) = watch::channel(None);
        let (phase, last_phase) = watch::channel(ProcessPhase {
            process: 0,
            pid: None,
            phase: Phase::Starting,
        });
        let closed = CancellationToken::new();
        let (refused, last_refused) = watch::channel(None);
        let is_connected = Arc::<AtomicBool>::default();
        let session = Session::new(welcome, phase, refused, is_connected.clone());
        let outgoing = [for_shell, for_control, for_stdin];
        let task = tokio::spawn(run(connect, session, received, outgoing, closed.clone()));
        Self {
            commands,
            outgoing: [shell, control, stdin],
            welcome: last_welcome,
            phase: last_phase,
            refused: last_refused,
            is_connected,
            closed,
            _task: AbortOnDrop::new(task.abort_handle()),
        }
    }

    /// The last phase that the agent reported, and its changes.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<ProcessPhase> {
        self.phase.clone()
    }

    /// Waits until the link has been connected, and returns the welcome of the last connection.
    ///
    /// # Errors
    /// [`LinkClosed`] if the agent is gone.
    pub async fn welcome(&self) -> Result<Welcome, LinkClosed> {
        let mut welcome = self.welcome.clone();
        tokio::select! {
            welcome = welcome.wait_for(Option::is_some) => welcome.ok().and_then(|welcome| welcome.clone()).ok_or(LinkClosed),
            () = self.closed.cancelled() => Err(LinkClosed),
        }
    }

    /// Why the agent refused the last attempt to connect; `None` if it admitted the link, or was not reached yet.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.refused.borrow().clone()
    }

    /// Whether the link is connected now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Sends a request and waits for the answer, even across reconnects. Use it with a timeout.
    ///
    /// # Errors
    /// [`LinkClosed`] if the agent is gone.
    pub async fn control(&self, control: Control) -> Result<Answer, LinkClosed> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Control(control, reply))
            .map_err(|_| LinkClosed)?;
        tokio::select! {
            answer = answer => answer.map_err(|_| LinkClosed),
            () = self.closed.cancelled() => Err(LinkClosed),
        }
    }

    /// Sends a request and ignores the answer.
    pub fn notify(&self, control: Control) {
        let (reply, _) = oneshot::channel();
        // Fails only if the link is closed.
        let _ = self.commands.send(Command::Control(control, reply));
    }

    /// Reads the agent's log, from the entry after `after`. Ends the previous reader, because there is only one at a
    /// time.
    #[must_use]
    pub fn read(&self, after: u64) -> Incoming {
        let (deliver, received) = mpsc::unbounded_channel();
        // If the link is closed, the receiver ends at once.
        let _ = self.commands.send(Command::Read { after, deliver });
        Incoming::new(received, self.commands.clone())
    }

    /// Returns a sender of messages on one channel to one process of the kernel. `log` is the log that numbers them.
    #[must_use]
    pub fn sender(&self, channel: Channel, process: u64, log: u128) -> MessageSender {
        let index = channel_index(channel);
        MessageSender {
            channel: CHANNELS[index],
            process,
            log,
            queue: self.outgoing[index].clone(),
        }
    }

    /// Drops messages that the agent has not accepted, because their process has ended.
    pub fn drop_unsent(&self) {
        let _ = self.commands.send(Command::DropUnsent);
    }

    /// Stops reconnecting, because the agent is gone. Entries that it has sent are still delivered.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

/// Sends messages to one process of the kernel on one channel, in order and without repetition.
#[derive(Clone, Debug)]
pub struct MessageSender {
    channel: Channel,
    process: u64,
    log: u128,
    queue: mpsc::Sender<Outgoing>,
}

impl MessageSender {
    /// The channel on which it sends.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Queues a message in the layout of `v1.kernel.websocket.jupyter.org`. Its `number` must be larger than the number
    /// of the channel's previous message.
    ///
    /// Waits while another message of the channel is queued. A queued message is sent once the agent has accepted the
    /// previous one and the kernel's process is running. It reaches the process even if the link reconnects, unless the
    /// process ends first. A cancelled call queues nothing.
    ///
    /// # Errors
    /// [`LinkClosed`] if the agent is gone.
    pub async fn send(&self, number: u64, message: Bytes) -> Result<(), LinkClosed> {
        let outgoing = Outgoing {
            channel: self.channel,
            process: self.process,
            log: self.log,
            number,
            message,
        };
        self.queue.send(outgoing).await.map_err(|_| LinkClosed)
    }
}

/// Identifies this run of the program in each [`Hello`](super::Hello).
pub(super) fn run_id() -> Uuid {
    static RUN: std::sync::OnceLock<Uuid> = std::sync::OnceLock::new();
    *RUN.get_or_init(Uuid::new_v4)
}
