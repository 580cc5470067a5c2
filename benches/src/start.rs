//! Time from the start of a kernel to its first answer.

use std::time::{Duration, Instant};

use jupyter_protocol::Transport;

use crate::Result;
use crate::by_hand::{Direct, Kernel};
use crate::measure::{Times, time};
use crate::peers::Gateway;
use crate::report::Section;
use crate::round_trip::Shell;
use crate::setup::{PYTHON, Setup};

/// Starts of each variant.
const ROUNDS: usize = 20;
/// Target: extra time against the faster start by hand.
const WANTED: Duration = Duration::from_millis(5);

/// Runs the benchmark.
///
/// # Errors
/// If a kernel or a gateway fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(
        "Start to first answer",
        "From the start of ipykernel until the client has a `kernel_info_reply`; the variants take turns. By hand: \
         start the process, try its shell port or socket every 0.2 ms, connect over ZeroMQ and send the request. \
         Through a gateway: `POST /api/kernels`, open the WebSocket, send the request. Each start is a new kernel, \
         after the previous one has ended.",
    );
    section.table(&["", "starts", "p50", "p90", "p50, more than by hand"]);
    let ours = Gateway::kernelmux(setup, "start").await?;
    let with_agent = Gateway::kernelmux_with(setup, "start-agent", &["--agent", "auto"]).await?;
    let peer = Gateway::kernel_gateway(setup).await?;
    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..=ROUNDS {
        let measured = [
            by_hand(setup, Transport::Tcp).await?,
            by_hand(setup, Transport::Ipc).await?,
            through(&ours).await?,
            through(&with_agent).await?,
            through(&peer).await?,
        ];
        // The first round loads the files into the page cache.
        if round > 0 {
            for (times, time) in times.iter_mut().zip(measured) {
                times.push(time);
            }
        }
    }
    ours.end()?;
    with_agent.end()?;
    peer.end()?;
    let [tcp, ipc, through_ours, through_agent, through_peer] = times.map(Times::new);
    let by_hand = tcp.median().min(ipc.median());
    let over = |times: &Times| times.median().as_secs_f64() - by_hand.as_secs_f64();
    for (name, times) in [
        ("by hand, TCP", &tcp),
        ("by hand, Unix sockets", &ipc),
        ("kernelmux-gateway", &through_ours),
        ("kernelmux-gateway, with agents", &through_agent),
        ("Kernel Gateway", &through_peer),
    ] {
        section.row([
            name.to_owned(),
            times.runs().to_string(),
            time(times.median()),
            time(times.percentile(90)),
            format!("{:+.1} ms", over(times) * 1e3),
        ]);
    }
    for (quantity, times) in [
        ("p50, more than the faster start by hand", &through_ours),
        ("the same, with agents", &through_agent),
    ] {
        let more = over(times);
        section.target(
            quantity,
            "≤ 5 ms",
            format!("{:+.1} ms", more * 1e3),
            more <= WANTED.as_secs_f64(),
        );
    }
    Ok(section)
}

async fn by_hand(setup: &Setup, transport: Transport) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let kernel = Kernel::python(setup, folder.path(), transport)?;
    kernel.wait()?;
    Shell::Direct(Box::new(Direct::to_shell(&kernel.info).await?))
        .ask()
        .await?;
    Ok(begun.elapsed())
}

async fn through(gateway: &Gateway) -> Result<Duration> {
    let begun = Instant::now();
    let kernel = gateway.address.start_kernel(PYTHON).await?;
    Shell::WebSocket(gateway.address.channels(&kernel, "bench").await?)
        .ask()
        .await?;
    let elapsed = begun.elapsed();
    gateway.address.end_kernel(&kernel).await?;
    Ok(elapsed)
}
