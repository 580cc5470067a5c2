//! Routes to a kernel: to its sockets at the pod's address or through port-forwards, or to its agent.

use std::io;
use std::path::Path;
use std::time::Duration;

use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{LaunchError, ProviderError};
use kube::Api;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agent_route::AgentRoute;

const CHANNELS: [Channel; 5] = [
    Channel::Shell,
    Channel::Iopub,
    Channel::Stdin,
    Channel::Control,
    Channel::Heartbeat,
];
/// Time limit of one connection attempt. A deleted pod does not refuse connections; it does not answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to connect to the kernel in one pod. `file` is the connection file in the pod.
pub(crate) enum Route {
    /// The pod's IP address.
    PodAddress { ip: String, file: Box<ConnectionInfo> },
    /// A port-forward through the API server.
    PortForward {
        forward: Box<PortForward>,
        file: Box<ConnectionInfo>,
    },
    /// The kernel's agent.
    Agent(AgentRoute),
}

impl Route {
    /// Returns the connection info for clients. That of a kernel with an agent is only valid in its pod.
    ///
    /// # Errors
    /// [`ProviderError`] if the kernel's agent does not answer.
    pub(crate) async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        match self {
            Self::PodAddress { ip, file } => Ok(ConnectionInfo {
                ip: ip.clone(),
                ..(**file).clone()
            }),
            Self::PortForward { forward, file } => Ok(ConnectionInfo {
                transport: Transport::Ipc,
                ip: forward.prefix.clone(),
                ..(**file).clone()
            }),
            Self::Agent(agent) => Ok(agent.link().connection().await?),
        }
    }

    /// The route to the kernel's agent, if it has one.
    pub(crate) fn agent(&self) -> Option<&AgentRoute> {
        match self {
            Self::Agent(agent) => Some(agent),
            _ => None,
        }
    }

    /// Waits until all of the kernel's sockets accept connections, or its agent has started it, without a time limit.
    ///
    /// No event announces that sockets accept connections, so they are polled. At a pod address, the pause between
    /// attempts is 1 to 10 ms. Through a port-forward, where each attempt is an API call, the pause grows from 50 ms to
    /// 500 ms.
    ///
    /// # Errors
    /// [`LaunchError`] if the agent reports that the kernel did not start.
    pub(crate) async fn ready(&self) -> Result<(), LaunchError> {
        match self {
            Self::PodAddress { ip, file } => {
                let started = Instant::now();
                for channel in CHANNELS {
                    let address = (ip.as_str(), file.port(channel));
                    while !matches!(
                        tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await,
                        Ok(Ok(_))
                    ) {
                        let pause =
                            (started.elapsed() / 100).clamp(Duration::from_millis(1), Duration::from_millis(10));
                        tokio::time::sleep(pause).await;
                    }
                }
            }
            Self::PortForward { forward, file } => {
                let mut pause = Duration::from_millis(50);
                while !matches!(
                    tokio::time::timeout(PROBE_TIMEOUT, forward.probe(file)).await,
                    Ok(Ok(()))
                ) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 3 / 2).min(Duration::from_millis(500));
                }
            }
            Self::Agent(agent) => agent.started().await?,
        }
        Ok(())
    }
}

/// Unix sockets whose connections are forwarded through the API server to the pod's ports.
///
/// Each connection has its own port-forward. If the port-forward breaks, its connection is closed. The next connection
/// opens a new port-forward.
pub(crate) struct PortForward {
    pods: Api<Pod>,
    pod: String,
    prefix: String,
    _dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl PortForward {
    /// Binds the sockets. Blocks briefly on the file system.
    pub(crate) fn open(pods: &Api<Pod>, pod: &str, file: &ConnectionInfo, dir: Option<&Path>) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("kmux-");
        // The directory is only accessible to this user.
        let dir = match dir {
            Some(parent) => builder.tempdir_in(parent)?,
            None => builder.tempdir()?,
        };
        let prefix = dir.path().join("k").to_string_lossy().into_owned();
        let mut tasks = JoinSet::new();
        for channel in CHANNELS {
            let port = file.port(channel);
            let listener = UnixListener::bind(format!("{prefix}-{port}"))?;
            tasks.spawn(serve(listener, pods.clone(), pod.to_owned(), port));
        }
        Ok(Self {
            pods: pods.clone(),
            pod: pod.to_owned(),
            prefix,
            _dir: dir,
            _tasks: tasks,
        })
    }

    /// Checks that the kernel listens on all ports, by reading the first byte of its ZMTP greeting. Opening a
    /// port-forward succeeds even without a listener.
    async fn probe(&self, file: &ConnectionInfo) -> Result<(), ()> {
        let ports = CHANNELS.map(|channel| file.port(channel));
        let mut forwarder = self.pods.portforward(&self.pod, &ports).await.map_err(drop)?;
        let mut streams: Vec<_> = ports.iter().filter_map(|port| forwarder.take_stream(*port)).collect();
        let mut all = Ok(());
        for stream in &mut streams {
            all = all.and(stream.read_u8().await.map(drop).map_err(drop));
            if all.is_err() {
                break;
            }
        }
        forwarder.abort();
        all
    }
}

/// Forwards each accepted connection. Never returns.
async fn serve(listener: UnixListener, pods: Api<Pod>, pod: String, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (pods, pod) = (pods.clone(), pod.clone());
                    connections.spawn(async move {
                        if let Err(error) = forward(stream, &pods, &pod, port).await {
                            tracing::debug!(%pod, port, %error, "a port-forward failed");
                        }
                    });
                }
                // The cause is usually too many open files, which may be temporary.
                Err(error) => {
                    tracing::warn!(%pod, port, %error, "cannot accept a connection for a port-forward");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut local: UnixStream, pods: &Api<Pod>, pod: &str, port: u16) -> Result<(), String> {
    let mut forwarder = pods
        .portforward(pod, &[port])
        .await
        .map_err(|error| error.to_string())?;
    let mut remote = forwarder.take_stream(port).ok_or("the port-forward has no stream")?;
    let copied = tokio::io::copy_bidirectional(&mut local, &mut remote).await;
    forwarder.abort();
    copied.map(drop).map_err(|error| error.to_string())
}
