//! Round trips of a request through a gateway and directly over ZeroMQ.

use std::time::{Duration, Instant};

use jupyter_protocol::content::KernelInfoRequest;
use jupyter_protocol::{Channel, Message, Transport, WireMessage};
use tokio::time::timeout;

use crate::Result;
use crate::by_hand::{Direct, Kernel};
use crate::measure::{Times, ratio, time};
use crate::peers::Gateway;
use crate::report::Section;
use crate::setup::{PYTHON, Setup};
use crate::wire::WebSocket;

/// Requests per round and variant, and number of rounds.
const IN_A_ROW: usize = 50;
const ROUNDS: usize = 40;
/// Rounds of Kernel Gateway, which is slow.
const ROUNDS_OF_PEER: usize = 4;
const WARM_UP: usize = 50;
const DEADLINE: Duration = Duration::from_secs(120);

/// A connection to a kernel's shell.
pub enum Shell {
    /// Directly to its sockets.
    Direct(Box<Direct>),
    /// Through a gateway's WebSocket.
    WebSocket(WebSocket),
}

impl Shell {
    /// Sends a `kernel_info_request` and returns the time until its reply was received and parsed.
    ///
    /// # Errors
    /// If no reply arrives.
    pub async fn ask(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.request(&Message::new(KernelInfoRequest::default(), "bench"))
            .await?;
        Ok(begun.elapsed())
    }

    /// Sends a request and returns its reply.
    ///
    /// # Errors
    /// If no reply arrives.
    pub async fn request(&mut self, request: &Message) -> Result<WireMessage> {
        self.send(request.to_wire()).await?;
        timeout(DEADLINE, async {
            loop {
                let reply = self.receive().await?;
                if *reply.parent_ref()?.msg_id == *request.header.msg_id
                    && reply.header_ref()?.msg_type.ends_with("_reply")
                {
                    return Ok(reply);
                }
            }
        })
        .await?
    }

    async fn send(&mut self, message: WireMessage) -> Result<()> {
        match self {
            Self::Direct(direct) => direct.send(message).await,
            Self::WebSocket(socket) => socket.send(Channel::Shell, &message).await,
        }
    }

    async fn receive(&mut self) -> Result<WireMessage> {
        match self {
            Self::Direct(direct) => direct.receive().await,
            Self::WebSocket(socket) => loop {
                let (channel, message) = socket.receive_message().await?;
                if channel == Channel::Shell {
                    return Ok(message);
                }
            },
        }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// If a kernel or a gateway fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(
        "Request round trip",
        format!(
            "From sending a `kernel_info_request` until its reply is received and checked, each variant with its own \
             ipykernel and the same client code (`Shell` in `round_trip.rs`). The variants take turns of {IN_A_ROW} \
             requests each, after {WARM_UP} to warm up."
        ),
    );
    section.table(&["", "requests", "p50", "p99", "p50 against direct (TCP)"]);
    let (tcp_folder, ipc_folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let tcp_kernel = Kernel::python(setup, tcp_folder.path(), Transport::Tcp)?;
    let ipc_kernel = Kernel::python(setup, ipc_folder.path(), Transport::Ipc)?;
    tcp_kernel.wait()?;
    ipc_kernel.wait()?;
    let ours = Gateway::kernelmux(setup, "round-trip").await?;
    let with_agent = Gateway::kernelmux_with(setup, "round-trip-agent", &["--agent", "auto"]).await?;
    let peer = Gateway::kernel_gateway(setup).await?;
    let mut ways = Vec::new();
    for (name, rounds, shell) in [
        (
            "direct, TCP",
            ROUNDS,
            Shell::Direct(Box::new(Direct::connect(&tcp_kernel.info).await?)),
        ),
        (
            "direct, Unix sockets",
            ROUNDS,
            Shell::Direct(Box::new(Direct::connect(&ipc_kernel.info).await?)),
        ),
        ("kernelmux-gateway", ROUNDS, through(&ours).await?),
        ("kernelmux-gateway, with agents", ROUNDS, through(&with_agent).await?),
        ("Kernel Gateway", ROUNDS_OF_PEER, through(&peer).await?),
    ] {
        ways.push((name, rounds, shell, Vec::new()));
    }
    for (_, _, shell, _) in &mut ways {
        for _ in 0..WARM_UP {
            shell.ask().await?;
        }
    }
    for round in 0..ROUNDS {
        for (_, rounds, shell, times) in &mut ways {
            if round < *rounds {
                for _ in 0..IN_A_ROW {
                    times.push(shell.ask().await?);
                }
            }
        }
    }
    let times: Vec<_> = ways
        .into_iter()
        .map(|(name, _, _, times)| (name, Times::new(times)))
        .collect();
    let p50: Vec<f64> = times.iter().map(|(_, times)| times.median().as_secs_f64()).collect();
    let [tcp, ipc, through_ours, through_agent, through_peer] = p50[..] else {
        return Err("not exactly five variants were measured".into());
    };
    for (name, times) in &times {
        section.row([
            (*name).to_owned(),
            times.runs().to_string(),
            time(times.median()),
            time(times.percentile(99)),
            ratio(times.median().as_secs_f64() / tcp),
        ]);
    }
    for (quantity, through) in [
        ("against direct ZeroMQ, the faster of the two", through_ours),
        ("the same, with agents", through_agent),
    ] {
        let against_direct = through / tcp.min(ipc);
        section.target(quantity, "≤ 1.3×", ratio(against_direct), against_direct <= 1.3);
    }
    let faster = through_peer / through_ours;
    section.target(
        "against Kernel Gateway",
        "≥ 40× faster",
        format!("{} faster", ratio(faster)),
        faster >= 40.0,
    );
    drop((tcp_kernel, ipc_kernel));
    ours.end()?;
    with_agent.end()?;
    peer.end()?;
    Ok(section)
}

async fn through(gateway: &Gateway) -> Result<Shell> {
    let kernel = gateway.address.start_kernel(PYTHON).await?;
    Ok(Shell::WebSocket(gateway.address.channels(&kernel, "bench").await?))
}
