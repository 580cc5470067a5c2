//! The connection to a kernel's agent: TLS to its port at the pod's address, or through one port-forward.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::agent::{Connect, Control, Launch, Link, Listen, PinnedConnector, Refused, Stream};
use kernel_provider::{LaunchError, ProviderError};
use kube::Api;
use kube::api::Portforwarder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How to connect to the agent in one pod. The link is opened when it is first needed.
pub(crate) struct AgentRoute {
    connect: Arc<PodConnect>,
    link: Mutex<Option<Arc<Link>>>,
}

struct PodConnect {
    way: Way,
    port: u16,
    token: String,
    tls: PinnedConnector,
}

/// The network path to an agent.
pub(crate) enum Way {
    /// The pod's IP address.
    PodAddress(String),
    /// A port-forward to the pod with this name.
    PortForward(Box<Api<Pod>>, String),
}

impl fmt::Debug for AgentRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRoute").finish_non_exhaustive()
    }
}

impl AgentRoute {
    /// Creates the route. `launch` is the agent's `launch.json` from the pod's Secret.
    ///
    /// # Errors
    /// [`ProviderError`] if `launch` is invalid.
    pub(crate) fn new(way: Way, launch: &[u8]) -> Result<Self, ProviderError> {
        // The parse error is left out because it could reveal the token.
        let invalid = || {
            ProviderError::failed(
                "connect to the kernel's agent",
                "the Secret of its pod is invalid; shut the kernel down",
            )
        };
        let launch: Launch = serde_json::from_slice(launch).map_err(|_| invalid())?;
        let Listen::Tls { port, identity } = launch.listen else {
            return Err(invalid());
        };
        Ok(Self {
            connect: Arc::new(PodConnect {
                way,
                port,
                token: launch.token,
                tls: identity.connector().map_err(|_| invalid())?,
            }),
            link: Mutex::default(),
        })
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        let mut link = crate::lock(&self.link);
        let open = || Arc::new(Link::open(Arc::clone(&self.connect) as Arc<dyn Connect>));
        Arc::clone(link.get_or_insert_with(open))
    }

    /// Closes the connection until the link is needed again, so that another gateway can connect.
    pub(crate) fn disconnect(&self) {
        *crate::lock(&self.link) = None;
    }

    /// Returns an error if the agent has refused the link because another program is connected.
    pub(crate) fn check_free(&self) -> Result<(), ProviderError> {
        if self.link().refused() != Some(Refused::Busy) {
            return Ok(());
        }
        let reason = "another gateway is connected to the agent; end that gateway, or use it";
        Err(ProviderError::failed("connect to the kernel's agent", reason))
    }

    /// Waits until the agent has started the kernel, without a time limit.
    ///
    /// # Errors
    /// [`LaunchError`] if the kernel did not start.
    pub(crate) async fn started(&self) -> Result<(), LaunchError> {
        self.launched(Control::Started).await
    }

    /// Sends a request that starts the kernel, and waits for the result.
    ///
    /// # Errors
    /// [`LaunchError`] if the kernel did not start.
    pub(crate) async fn launched(&self, control: Control) -> Result<(), LaunchError> {
        self.link().launched(control).await.map_err(ProviderError::from)?
    }
}

#[async_trait]
impl Connect for PodConnect {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.way {
            Way::PodAddress(ip) => {
                let stream = TcpStream::connect((ip.as_str(), self.port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(self.tls.connect(stream).await?))
            }
            Way::PortForward(pods, pod) => {
                let forward = pods.portforward(pod, &[self.port]).await.map_err(io::Error::other)?;
                Ok(Box::new(self.tls.connect(Forward::new(forward, self.port)?).await?))
            }
        }
    }

    fn token(&self) -> &str {
        &self.token
    }
}

/// A connection through the API server. Dropping it closes it.
struct Forward<S> {
    stream: S,
    forwarder: Portforwarder,
}

impl Forward<()> {
    fn new(mut forwarder: Portforwarder, port: u16) -> io::Result<Forward<impl Stream>> {
        let stream = forwarder.take_stream(port);
        let stream = stream.ok_or_else(|| io::Error::other("the port-forward has no stream"))?;
        Ok(Forward { stream, forwarder })
    }
}

impl<S> Drop for Forward<S> {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Forward<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Forward<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
