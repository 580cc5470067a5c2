use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::ClientError;
use super::options::ClientOptions;
use super::routes::Routes;
use super::{Client, Inner};
use crate::channel::Channel;
use crate::connection_file::ConnectionInfo;
use crate::content::KernelInfoRequest;
use crate::log_limiter::LogLimiter;
use crate::message::Message;
use crate::signing::{DigestHistory, Signer};
use crate::wire::{WireError, WireMessage};
use crate::zmq::{self, DealerReceiver, DealerSender, IopubSubscriber, SocketError};

/// How long to wait for `iopub_welcome` before sending the first [`Nudge`].
const WELCOME_TIMEOUT: Duration = Duration::from_millis(100);

/// How long to keep receiving from the other sockets after one is lost.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between nudges.
const NUDGE_INTERVAL: Duration = Duration::from_millis(500);

impl Client {
    /// Connects like [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(info: &ConnectionInfo, options: ClientOptions) -> Result<Self, ClientError> {
        if info.is_encrypted() {
            return Err(ClientError::Encrypted);
        }
        let signer = info.signer()?;
        let session = options
            .session
            .clone()
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let deadline = options.connect_deadline;
        let dealer = |channel| dealer(info, channel, &session, deadline);
        let (shell, control, stdin, mut iopub) = tokio::try_join!(
            dealer(Channel::Shell),
            dealer(Channel::Control),
            dealer(Channel::Stdin),
            iopub(info, deadline)
        )?;
        let (mut shell, from_shell) = shell.ok_or(ClientError::NoPort(Channel::Shell))?;
        let (mut control, from_control) = control.unzip();
        let (stdin, from_stdin) = stdin.unzip();
        if let Some(deadline) = options.iopub_deadline {
            let nudge = Nudge {
                shell: &mut shell,
                control: control.as_mut(),
                session: &session,
                signer: &signer,
            };
            wait_for_subscription(&mut iopub, nudge, deadline).await?;
        }
        let routes = Arc::new(Routes::new(options.queue));
        let task = tokio::spawn(receive_all(
            from_shell,
            from_control,
            from_stdin,
            iopub,
            signer.clone(),
            routes.clone(),
        ));
        Ok(Self {
            inner: Arc::new(Inner {
                heartbeat: (info.hb_port != 0).then(|| info.address(Channel::Heartbeat)),
                session,
                options,
                signer,
                shell: Mutex::new(shell),
                control: control.map(Mutex::new),
                stdin: stdin.map(Mutex::new),
                routes,
                task: task.abort_handle(),
            }),
        })
    }
}

async fn dealer(
    info: &ConnectionInfo,
    channel: Channel,
    session: &str,
    deadline: Duration,
) -> Result<Option<(DealerSender, DealerReceiver)>, ClientError> {
    if info.port(channel) == 0 {
        return Ok(None);
    }
    let connected = zmq::dealer(&info.address(channel), session, deadline).await;
    connected.map(Some).map_err(|error| cannot_connect(channel, &error))
}

async fn iopub(info: &ConnectionInfo, deadline: Duration) -> Result<IopubSubscriber, ClientError> {
    if info.iopub_port == 0 {
        return Err(ClientError::NoPort(Channel::Iopub));
    }
    let connected = IopubSubscriber::connect(&info.address(Channel::Iopub), deadline).await;
    connected.map_err(|error| cannot_connect(Channel::Iopub, &error))
}

fn cannot_connect(channel: Channel, error: &SocketError) -> ClientError {
    ClientError::Connect {
        channel,
        reason: error.to_string(),
    }
}

/// Sends `kernel_info_request`s, for which a kernel publishes at least the busy and idle status.
struct Nudge<'a> {
    shell: &'a mut DealerSender,
    control: Option<&'a mut DealerSender>,
    session: &'a str,
    signer: &'a Signer,
}

impl Nudge<'_> {
    async fn send(&mut self) -> Result<(), SocketError> {
        let request = || {
            let message = Message::new(KernelInfoRequest::default(), self.session);
            message.to_wire().signed(self.signer)
        };
        // Sent on both channels: shell may be busy for a long time, and not every kernel publishes its status for
        // requests on control.
        self.shell.send(request()).await?;
        if let Some(control) = &mut self.control {
            control.send(request()).await?;
        }
        Ok(())
    }
}

/// Waits until a message proves that the subscription is in effect.
async fn wait_for_subscription(
    iopub: &mut IopubSubscriber,
    mut nudge: Nudge<'_>,
    after: Duration,
) -> Result<(), ClientError> {
    let end = Instant::now() + after;
    let mut interval = WELCOME_TIMEOUT;
    loop {
        match timeout_at(end, timeout(interval, iopub.recv())).await {
            // Any message is proof, even an invalid one.
            Ok(Ok(Ok(_) | Err(SocketError::Wire(_)))) => return Ok(()),
            Ok(Ok(Err(error))) => return Err(ClientError::gone(&error)),
            Ok(Err(_)) => {
                // A kernel that does not send `iopub_welcome` may publish nothing without a request.
                nudge.send().await.map_err(|error| ClientError::gone(&error))?;
                interval = NUDGE_INTERVAL;
            }
            Err(_) => {
                return Err(ClientError::Deadline {
                    what: "message on iopub".to_owned(),
                    after,
                });
            }
        }
    }
}

/// Receives from all sockets concurrently until one of them is lost.
///
/// A kernel that exits closes its sockets one after the other. So after the first socket is lost, this still receives
/// the messages that the kernel has sent on the others.
async fn receive_all(
    shell: DealerReceiver,
    control: Option<DealerReceiver>,
    stdin: Option<DealerReceiver>,
    iopub: IopubSubscriber,
    signer: Signer,
    routes: Arc<Routes>,
) {
    let sources = [
        (Some(Source::Dealer(shell)), Channel::Shell),
        (control.map(Source::Dealer), Channel::Control),
        (stdin.map(Source::Dealer), Channel::Stdin),
        (Some(Source::Subscriber(iopub)), Channel::Iopub),
    ];
    let mut sockets: FuturesUnordered<_> = sources
        .into_iter()
        .filter_map(|(source, channel)| Some(receive(source?, channel, &signer, &routes)))
        .collect();
    let Some(error) = sockets.next().await else { return };
    // Times out if the kernel keeps its other sockets open.
    let _ = timeout(DRAIN_TIMEOUT, async { while sockets.next().await.is_some() {} }).await;
    routes.lose(&error);
}

enum Source {
    Dealer(DealerReceiver),
    Subscriber(IopubSubscriber),
}

impl Source {
    async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        match self {
            Self::Dealer(dealer) => dealer.recv().await,
            Self::Subscriber(iopub) => iopub.recv().await,
        }
    }

    fn refused(&mut self, message: &WireMessage) {
        match self {
            Self::Dealer(dealer) => dealer.refused(message),
            Self::Subscriber(iopub) => iopub.refused(message),
        }
    }
}

async fn receive(mut source: Source, channel: Channel, signer: &Signer, routes: &Routes) -> ClientError {
    let mut history = DigestHistory::default();
    let limiter = LogLimiter::new();
    let log_rejected = |error: &WireError| {
        if let Some(suppressed) = limiter.due() {
            tracing::warn!(%channel, %error, suppressed, "rejected a message from the kernel");
        }
    };
    loop {
        match source.recv().await {
            Ok(message) => match check(&message, signer, &mut history) {
                Ok(()) => routes.deliver(channel, message),
                Err(error) => {
                    source.refused(&message);
                    log_rejected(&error);
                }
            },
            Err(SocketError::Wire(error)) => log_rejected(&error),
            Err(error) => return ClientError::gone(&error),
        }
        // A socket that always has more to read must not starve the others.
        tokio::task::coop::consume_budget().await;
    }
}

fn check(message: &WireMessage, signer: &Signer, history: &mut DigestHistory) -> Result<(), WireError> {
    message.verify(signer)?;
    if history.insert(message.signature()) {
        Ok(())
    } else {
        Err(WireError::Replayed)
    }
}
