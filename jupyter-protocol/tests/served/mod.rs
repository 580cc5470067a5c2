//! A kernel that echoes, in the test's own process.
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

use crate::zmtp_peer::{SOON, ready, soon};

/// Its sockets, each with the type of those that connect to it.
pub(crate) const SOCKETS: [(Channel, &str); 5] = [
    (Channel::Shell, "DEALER"),
    (Channel::Control, "DEALER"),
    (Channel::Stdin, "DEALER"),
    (Channel::Heartbeat, "REQ"),
    (Channel::Iopub, "SUB"),
];

/// Echoes code, and shows much for whatever is inspected.
struct Echo;

#[async_trait]
impl Kernel for Echo {
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

pub(crate) struct Served {
    pub(crate) info: ConnectionInfo,
    pub(crate) server: JoinHandle<Shutdown>,
}

/// Over TCP, on any ports where `info` has none.
pub(crate) async fn serve(info: ConnectionInfo) -> Served {
    let server = Server::bind(info, Echo).await.unwrap();
    let info = server.connection_info().clone();
    let server = tokio::spawn(server.run());
    Served { info, server }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Served {
    pub(crate) async fn end(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    pub(crate) async fn tcp(&self, channel: Channel) -> TcpStream {
        TcpStream::connect((self.info.ip.as_str(), self.info.port(channel)))
            .await
            .unwrap()
    }

    /// A connection after the handshake, in which it said that it is of this type.
    pub(crate) async fn shaken(&self, channel: Channel, socket_type: &str) -> TcpStream {
        let mut stream = self.tcp(channel).await;
        stream.write_all(crate::zmtp_peer::GREETING).await.unwrap();
        stream.write_all(&ready(socket_type)).await.unwrap();
        let mut greeting = [0; 64];
        soon(stream.read_exact(&mut greeting)).await.unwrap();
        let mut head = [0; 2];
        soon(stream.read_exact(&mut head)).await.unwrap();
        let mut body = vec![0; head[1].into()];
        soon(stream.read_exact(&mut body)).await.unwrap();
        stream
    }

    /// A request of a client of its own. Its identity is not used.
    pub(crate) fn request(&self) -> WireMessage {
        Message::new(KernelInfoRequest::default(), "client")
            .to_wire()
            .signed(&self.info.signer().unwrap())
    }

    /// That shell and heartbeat answer a client that has just connected.
    pub(crate) async fn still_answers(&self) {
        soon(async {
            let address = self.info.address(Channel::Shell);
            let (mut sender, mut receiver) = zmq::dealer(&address, "honest", SOON).await.unwrap();
            sender.send(self.request()).await.unwrap();
            receiver.recv().await.unwrap();
            zmq::heartbeat(&self.info.address(Channel::Heartbeat), SOON)
                .await
                .unwrap();
        })
        .await;
    }
}

/// Waits until the other side has closed it.
pub(crate) async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // It fails where the other side did not read all that was sent.
    let _ = soon(stream.read_to_end(&mut rest)).await;
}

/// One frame, the last of its message.
pub(crate) fn frame(body: &[u8]) -> Bytes {
    [&[0, u8::try_from(body.len()).unwrap()], body].concat().into()
}
