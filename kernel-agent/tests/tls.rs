//! An agent that reads its launch from a file and listens with TLS, as in a pod.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../provider-local/tests/common/mod.rs"]
mod common;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{LONG, python};
use jupyter_protocol::KernelId;
use kernel_provider::agent::frame::{FromAgent, MAX_HELLO, ToAgent, codec};
use kernel_provider::agent::{
    Answer, Connect, Control, Hello, Launch, Link, Listen, PinnedConnector, Refused, Stream, TlsIdentity, VERSION,
};
use kernel_provider::{ExitCause, Phase};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

struct Agent {
    process: Child,
    root: tempfile::TempDir,
    launch: Launch,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Agent {
    /// Starts an agent for a kernel with this command, after `change` has changed the launch.
    fn start(argv: &[&str], change: impl FnOnce(&mut Launch)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut launch = Launch {
            id: KernelId::random(),
            spec_name: "test".to_owned(),
            spec: serde_json::from_value(json!({"argv": argv})).unwrap(),
            resource_dir: PathBuf::from("/nowhere"),
            env: Default::default(),
            inherit_over_kernelspec: Default::default(),
            inherit_all: true,
            working_dir: None,
            timeout: LONG,
            dir: root.path().join("state"),
            socket_dir: root.path().join("s"),
            listen: Listen::Tls {
                port: free_port(),
                identity: TlsIdentity::generate().unwrap(),
            },
            token: "the right token".to_owned(),
            transport: None,
            ports: None,
            python: None,
            command_prefix: Vec::new(),
            spool_bytes: 1 << 20,
            orphan_timeout: None,
            linger: None,
        };
        change(&mut launch);
        let file = root.path().join("launch.json");
        std::fs::write(&file, serde_json::to_vec(&launch).unwrap()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kernelmux-agent"))
            .arg("run")
            .arg("--launch")
            .arg(&file)
            .current_dir(root.path())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(root.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { process, root, launch }
    }

    /// Starts an agent with ipykernel, unless the machine has none.
    fn ipykernel(change: impl FnOnce(&mut Launch)) -> Option<Self> {
        let python = python()?;
        let argv = [python.to_str()?, "-m", "ipykernel_launcher", "-f", "{connection_file}"];
        Some(Self::start(&argv, change))
    }

    fn identity(&self) -> (u16, &TlsIdentity) {
        match &self.launch.listen {
            Listen::Tls { port, identity } => (*port, identity),
            other => panic!("{other:?}"),
        }
    }

    fn connector(&self, pinned: &TlsIdentity) -> Connector {
        Connector {
            port: self.identity().0,
            token: self.launch.token.clone(),
            tls: pinned.connector().unwrap(),
        }
    }

    fn link(&self) -> Link {
        Link::open(Arc::new(self.connector(self.identity().1)))
    }

    async fn ended(&mut self) -> ExitStatus {
        let ending = async {
            loop {
                if let Some(status) = self.process.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, ending).await.expect("the agent does not end")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connector {
    port: u16,
    token: String,
    tls: PinnedConnector,
}

#[async_trait]
impl Connect for Connector {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        Ok(Box::new(self.tls.connect(stream).await?))
    }

    fn token(&self) -> &str {
        &self.token
    }
}

async fn ask(link: &Link, control: Control) -> Answer {
    let asked = timeout(LONG, link.control(control)).await;
    asked.expect("the agent does not answer").expect("the link is closed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_controlled_over_tls() {
    let Some(mut agent) = Agent::ipykernel(|_| {}) else {
        return;
    };
    let link = agent.link();
    assert!(matches!(ask(&link, Control::Started).await, Answer::Done));
    let before = link.phase().borrow().clone();
    assert_eq!(before.phase, Phase::Running);
    let grace = Duration::from_secs(5);
    assert!(matches!(ask(&link, Control::Restart { grace }).await, Answer::Done));
    let after = link.phase().borrow().clone();
    assert!(after.phase == Phase::Running && after.process > before.process);
    assert!(matches!(ask(&link, Control::Interrupt).await, Answer::Done));
    // A second link of the same process is admitted, whether or not the first connection has ended.
    drop(link);
    let second = agent.link();
    assert!(matches!(ask(&second, Control::Started).await, Answer::Done));
    let head = second.welcome().await.unwrap().head;
    let mut incoming = second.read(0);
    assert!(timeout(LONG, incoming.next()).await.unwrap().is_some());
    let exit = match ask(&second, Control::Shutdown { grace }).await {
        Answer::Ended(exit) => exit,
        other => panic!("{other:?}"),
    };
    assert_eq!(exit.cause, ExitCause::Requested);
    // The agent ends once its entries are acknowledged.
    incoming.acknowledger().acknowledge(head + 1_000);
    assert!(agent.ended().await.success());
    // The agent's standard error does not contain the token.
    let stderr = std::fs::read_to_string(agent.root.path().join("stderr")).unwrap();
    assert!(!stderr.contains(&agent.launch.token), "{stderr}");
}

/// Sends a hello with this token, and returns the refusal. An admitted connection fails the test.
async fn greet(connector: &Connector, token: &str) -> Result<Refused, io::Error> {
    use futures::StreamExt as _;

    let mut stream = connector.connect().await?;
    let hello = Hello {
        version: VERSION,
        token: token.to_owned(),
        client: uuid::Uuid::new_v4(),
    };
    let json = serde_json::to_vec(&hello).unwrap();
    assert!(json.len() < MAX_HELLO);
    stream.write_all(&ToAgent::Hello(json.into()).encode()).await?;
    stream.flush().await?;
    let mut frames = tokio_util::codec::FramedRead::new(stream, codec());
    match FromAgent::decode(frames.next().await.expect("the connection ended")?.freeze()).unwrap() {
        FromAgent::Refused(json) => Ok(serde_json::from_slice(&json).unwrap()),
        other => panic!("admitted: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_and_a_wrong_certificate_are_refused() {
    let Some(agent) = Agent::ipykernel(|_| {}) else { return };
    let link = agent.link();
    assert!(matches!(ask(&link, Control::Started).await, Answer::Done));
    let right = agent.connector(agent.identity().1);
    assert_eq!(greet(&right, "a wrong token").await.unwrap(), Refused::Token);
    // Another gateway is refused while `link` is connected.
    assert_eq!(greet(&right, &agent.launch.token).await.unwrap(), Refused::Busy);
    let wrong = agent.connector(&TlsIdentity::generate().unwrap());
    let refused = greet(&wrong, &agent.launch.token).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
    // A connection without TLS gets no answer from the agent.
    let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, right.port)).await.unwrap();
    plain.write_all(&[0; 64]).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(LONG, tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer)).await;
    assert!(read.is_ok() && !answer.windows(9).any(|part| part == b"kernel_id"));
    assert!(matches!(ask(&link, Control::Started).await, Answer::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_with_the_exit_code_of_a_kernel_that_is_not_restarted() {
    let Some(mut agent) = Agent::ipykernel(|launch| launch.linger = Some(Duration::ZERO)) else {
        return;
    };
    let link = agent.link();
    assert!(matches!(ask(&link, Control::Started).await, Answer::Done));
    let mut phase = link.phase();
    let pid = phase.borrow().pid.and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let is_over = |phase: &kernel_provider::agent::ProcessPhase| matches!(&phase.phase, Phase::Exited(exit) if exit.cause == ExitCause::Signal(9));
    timeout(LONG, phase.wait_for(is_over)).await.unwrap().unwrap();
    // The agent waits until the last entries are acknowledged.
    assert!(agent.process.try_wait().unwrap().is_none());
    link.read(0).acknowledger().acknowledge(u64::MAX);
    assert_eq!(agent.ended().await.code(), Some(128 + 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_agent_whose_kernel_has_not_started() {
    let mut agent = Agent::start(&["sh", "-c", "sleep 1000", "{connection_file}"], |_| {});
    let link = agent.link();
    // The agent handles signals once it answers.
    timeout(LONG, link.welcome()).await.unwrap().unwrap();
    let pid = rustix::process::Pid::from_child(&agent.process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(agent.ended().await.success());
}
