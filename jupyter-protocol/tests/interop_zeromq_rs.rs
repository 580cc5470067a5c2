//! Interoperability with the sockets of the crate `zeromq`, in both directions, over TCP and Unix sockets.
#![cfg(all(feature = "client", feature = "kernel", feature = "zeromq"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod echo_kernel;
mod zmtp_peer;

use bytes::Bytes;
use common::{CHANNELS, fresh_info};
use jupyter_protocol::client::{Client, ExecutionEvent};
use jupyter_protocol::content::{
    Content, ExecuteReply, ExecuteRequest, ExecutionState, KernelInfoReply, KernelInfoRequest, Reply, Status, Stream,
};
use jupyter_protocol::{Channel, ConnectionInfo, Message, Signer, Transport, WireMessage};
use tempfile::TempDir;
use tokio::task::JoinSet;
use zeromq::{
    DealerSocket, Endpoint, PubSocket, RepSocket, ReqSocket, RouterSocket, Socket, SocketOptions, SocketRecv,
    SocketSend, SubSocket, ZmqMessage,
};
use zmtp_peer::{DEADLINE, within_deadline};

const SESSION: &str = "zeromq";

/// Creates connection info with Unix sockets in `dir`, or without ports for TCP.
fn unbound_info(transport: Transport, dir: &TempDir) -> ConnectionInfo {
    let mut info = fresh_info(transport, dir);
    if transport == Transport::Tcp {
        for channel in CHANNELS {
            info.set_port(channel, 0);
        }
    }
    info
}

/// Creates a socket of `zeromq` and binds it, on a free port where `info` has none.
async fn bind<S: Socket>(info: &mut ConnectionInfo, channel: Channel) -> S {
    let mut socket = S::new();
    if let Endpoint::Tcp(_, port) = socket.bind(&info.address(channel)).await.unwrap() {
        info.set_port(channel, port);
    }
    socket
}

/// A kernel on sockets of `zeromq` that echoes code. Its tasks are aborted on drop.
struct ZeromqKernel {
    info: ConnectionInfo,
    _tasks: JoinSet<()>,
}

impl ZeromqKernel {
    async fn start(transport: Transport, dir: &TempDir) -> Self {
        let mut info = unbound_info(transport, dir);
        let signer = info.signer().unwrap();
        let mut iopub: PubSocket = bind(&mut info, Channel::Iopub).await;
        let (publish, mut to_publish) = tokio::sync::mpsc::channel::<WireMessage>(100);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(message) = to_publish.recv().await {
                iopub.send(message.into()).await.unwrap();
            }
        });
        for channel in [Channel::Shell, Channel::Control, Channel::Stdin] {
            let mut socket: RouterSocket = bind(&mut info, channel).await;
            let (signer, publish) = (signer.clone(), publish.clone());
            tasks.spawn(async move {
                loop {
                    let request = WireMessage::try_from(socket.recv().await.unwrap()).unwrap();
                    request.verify(&signer).unwrap();
                    let (reply, outputs) = answer(&request, &signer);
                    for output in outputs {
                        publish.send(output).await.unwrap();
                    }
                    // Fails if the client has disconnected.
                    let _ = socket.send(reply.into()).await;
                }
            });
        }
        let mut heartbeat: RepSocket = bind(&mut info, Channel::Heartbeat).await;
        tasks.spawn(async move {
            loop {
                let ping = heartbeat.recv().await.unwrap();
                heartbeat.send(ping).await.unwrap();
            }
        });
        Self { info, _tasks: tasks }
    }
}

/// Returns the reply to a request and the messages to publish.
fn answer(request: &WireMessage, signer: &Signer) -> (WireMessage, Vec<WireMessage>) {
    let parsed = Message::from_wire(request).unwrap();
    let wire = |content: Content| {
        let message = Message::new(content, SESSION).with_parent(parsed.header.clone());
        message.to_wire().signed(signer)
    };
    let mut outputs = vec![Status::new(ExecutionState::Busy).into()];
    let reply: Content = match &parsed.content {
        Content::ExecuteRequest(execute) => {
            outputs.push(Stream::stdout(&execute.code).into());
            Reply::Ok(ExecuteReply::default()).into()
        }
        _ => Reply::Ok(KernelInfoReply {
            implementation: SESSION.to_owned(),
            ..KernelInfoReply::default()
        })
        .into(),
    };
    outputs.push(Status::new(ExecutionState::Idle).into());
    let reply = wire(reply).with_identities(request.identities().iter().cloned());
    let topic = || [Bytes::from("kernel.iopub")];
    (
        reply,
        outputs
            .into_iter()
            .map(|content| wire(content).with_identities(topic()))
            .collect(),
    )
}

/// Runs code and returns its output.
async fn run(client: &Client, code: &str) -> String {
    let mut execution = client.execute(ExecuteRequest::new(code)).await.unwrap();
    let mut output = String::new();
    while let Some(event) = execution.next().await {
        if let ExecutionEvent::Output(message) = event.unwrap()
            && let Content::Stream(stream) = message.content
        {
            output.push_str(&stream.text);
        }
    }
    output
}

async fn client_with_zeromq_kernel(transport: Transport) {
    let dir = TempDir::new().unwrap();
    let kernel = ZeromqKernel::start(transport, &dir).await;
    let client = within_deadline(Client::connect(&kernel.info)).await.unwrap();
    let info = within_deadline(client.kernel_info()).await.unwrap();
    assert_eq!(info.implementation, SESSION);
    for length in [0, 200, 255, 256, 65_536, 8 << 20] {
        let code = "x".repeat(length);
        assert!(
            within_deadline(run(&client, &code)).await == code,
            "the output of {length} bytes differs from the code"
        );
    }
    within_deadline(client.heartbeat(DEADLINE)).await.unwrap();
}

#[tokio::test]
async fn our_client_runs_code_in_a_kernel_on_zeromq_over_tcp() {
    client_with_zeromq_kernel(Transport::Tcp).await;
}

#[tokio::test]
async fn our_client_runs_code_in_a_kernel_on_zeromq_over_unix_sockets() {
    client_with_zeromq_kernel(Transport::Ipc).await;
}

/// Creates a socket of `zeromq` with an identity and connects it.
async fn connect<S: Socket>(info: &ConnectionInfo, channel: Channel) -> S {
    let mut options = SocketOptions::default();
    options.peer_identity(SESSION.parse().unwrap());
    let mut socket = S::with_options(options);
    within_deadline(socket.connect(&info.address(channel))).await.unwrap();
    socket
}

async fn receive(socket: &mut impl SocketRecv, signer: &Signer) -> Message {
    let received = within_deadline(socket.recv()).await.unwrap();
    let wire = WireMessage::try_from(received).unwrap();
    wire.verify(signer).unwrap();
    Message::from_wire(&wire).unwrap()
}

async fn zeromq_client_with_our_kernel(transport: Transport) {
    let dir = TempDir::new().unwrap();
    let kernel = echo_kernel::serve(unbound_info(transport, &dir)).await;
    let signer = kernel.info.signer().unwrap();
    let mut iopub: SubSocket = connect(&kernel.info, Channel::Iopub).await;
    iopub.subscribe("").await.unwrap();
    let welcome = receive(&mut iopub, &signer).await;
    assert!(matches!(welcome.content, Content::IopubWelcome(_)));

    for channel in [Channel::Shell, Channel::Control] {
        let mut dealer: DealerSocket = connect(&kernel.info, channel).await;
        let request = Message::new(KernelInfoRequest::default(), SESSION);
        dealer.send(request.to_wire().signed(&signer).into()).await.unwrap();
        let reply = receive(&mut dealer, &signer).await;
        assert!(matches!(reply.content, Content::KernelInfoReply(_)));
        assert_eq!(reply.parent_header.unwrap().msg_id, request.header.msg_id);
        for state in [ExecutionState::Busy, ExecutionState::Idle] {
            assert_eq!(receive(&mut iopub, &signer).await.content, Status::new(state).into());
        }
    }

    let mut dealer: DealerSocket = connect(&kernel.info, Channel::Shell).await;
    for length in [0, 200, 255, 256, 65_536, 8 << 20] {
        let code = "x".repeat(length);
        let request = Message::new(ExecuteRequest::new(&code), SESSION);
        dealer.send(request.to_wire().signed(&signer).into()).await.unwrap();
        let output = loop {
            if let Content::Stream(stream) = receive(&mut iopub, &signer).await.content {
                break stream.text;
            }
        };
        assert!(output == code, "the output of {length} bytes differs from the code");
        let reply = receive(&mut dealer, &signer).await;
        assert!(matches!(reply.content, Content::ExecuteReply(Reply::Ok(_))));
    }

    let mut heartbeat: ReqSocket = connect(&kernel.info, Channel::Heartbeat).await;
    heartbeat.send(ZmqMessage::from("ping")).await.unwrap();
    let echo = within_deadline(heartbeat.recv()).await.unwrap();
    assert_eq!(echo.into_vec(), ["ping"]);
}

#[tokio::test]
async fn sockets_of_zeromq_run_code_in_our_kernel_over_tcp() {
    zeromq_client_with_our_kernel(Transport::Tcp).await;
}

#[tokio::test]
async fn sockets_of_zeromq_run_code_in_our_kernel_over_unix_sockets() {
    zeromq_client_with_our_kernel(Transport::Ipc).await;
}
