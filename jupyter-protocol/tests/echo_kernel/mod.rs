//! A kernel that echoes code, in the process of the test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use jupyter_protocol::content::{
    ExecuteReply, ExecuteRequest, InspectReply, InspectRequest, KernelInfoReply, KernelInfoRequest, MimeBundle,
    ReplyError,
};
use jupyter_protocol::kernel::{Context, Kernel, Server, Shutdown, async_trait};
use jupyter_protocol::{Channel, ConnectionInfo, Message, WireMessage, zmq};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::zmtp_peer::{DEADLINE, ready, within_deadline};

/// The kernel's channels, each with the socket type of clients.
pub(crate) const SOCKETS: [(Channel, &str); 5] = [
    (Channel::Shell, "DEALER"),
    (Channel::Control, "DEALER"),
    (Channel::Stdin, "DEALER"),
    (Channel::Heartbeat, "REQ"),
    (Channel::Iopub, "SUB"),
];

/// Echoes code, and replies to inspect requests with 256 KiB.
struct EchoCode;

#[async_trait]
impl Kernel for EchoCode {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout(&request.code).await;
        Ok(ExecuteReply::default())
    }

    async fn inspect(&self, _: &InspectRequest, _: &Context) -> InspectReply {
        InspectReply {
            found: true,
            data: MimeBundle::from_text("x".repeat(256 << 10)),
            ..InspectReply::default()
        }
    }
}

/// A running echo kernel, which is aborted on drop.
pub(crate) struct EchoKernel {
    pub(crate) info: ConnectionInfo,
    pub(crate) server: JoinHandle<Shutdown>,
}

/// Serves an echo kernel, on free ports where `info` has none.
pub(crate) async fn serve(info: ConnectionInfo) -> EchoKernel {
    let server = Server::bind(info, EchoCode).await.unwrap();
    let info = server.connection_info().clone();
    let server = tokio::spawn(server.run());
    EchoKernel { info, server }
}

impl Drop for EchoKernel {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl EchoKernel {
    pub(crate) async fn abort(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    /// Opens a raw connection without a handshake.
    pub(crate) async fn connect_tcp(&self, channel: Channel) -> TcpStream {
        TcpStream::connect((self.info.ip.as_str(), self.info.port(channel)))
            .await
            .unwrap()
    }

    /// Opens a raw connection and performs the handshake as a socket of this type.
    pub(crate) async fn connect_as(&self, channel: Channel, socket_type: &str) -> TcpStream {
        let mut stream = self.connect_tcp(channel).await;
        stream.write_all(crate::zmtp_peer::GREETING).await.unwrap();
        stream.write_all(&ready(socket_type)).await.unwrap();
        let mut greeting = [0; 64];
        within_deadline(stream.read_exact(&mut greeting)).await.unwrap();
        let mut header = [0; 2];
        within_deadline(stream.read_exact(&mut header)).await.unwrap();
        let mut body = vec![0; header[1].into()];
        within_deadline(stream.read_exact(&mut body)).await.unwrap();
        stream
    }

    /// Creates a signed `kernel_info_request`.
    pub(crate) fn request(&self) -> WireMessage {
        Message::new(KernelInfoRequest::default(), "client")
            .to_wire()
            .signed(&self.info.signer().unwrap())
    }

    /// Asserts that shell and heartbeat answer a new client.
    pub(crate) async fn assert_responsive(&self) {
        within_deadline(async {
            let address = self.info.address(Channel::Shell);
            let (mut sender, mut receiver) = zmq::dealer(&address, "honest", DEADLINE).await.unwrap();
            sender.send(self.request()).await.unwrap();
            receiver.recv().await.unwrap();
            zmq::heartbeat(&self.info.address(Channel::Heartbeat), DEADLINE)
                .await
                .unwrap();
        })
        .await;
    }
}

/// Waits until the peer has closed the connection.
pub(crate) async fn wait_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // Fails if the peer did not read all that was sent.
    let _ = within_deadline(stream.read_to_end(&mut rest)).await;
}

/// Encodes a short frame, the last of its message.
pub(crate) fn frame(body: &[u8]) -> Bytes {
    [&[0, u8::try_from(body.len()).unwrap()], body].concat().into()
}
