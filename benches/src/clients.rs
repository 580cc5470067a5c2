//! A thousand clients of one kernel that publishes a burst of output.

use std::time::{Duration, Instant};

use jupyter_protocol::codec::websocket_v1::V1Message;
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::header::HeaderRef;
use jupyter_protocol::{Channel, Message};
use serde_json::json;
use tokio::time::timeout;

use crate::measure::{bytes, count, per_second, time};
use crate::peers::Gateway;
use crate::recorder::number;
use crate::report::Section;
use crate::setup::{FLOOD, Setup, scaled};
use crate::wire::WebSocket;
use crate::{Result, process};

const CLIENTS: usize = 1_000;
const MESSAGES: usize = 2_000;
/// Pause before the gateway's memory is read.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a client waits for the next message before it counts the rest as lost.
const QUIET: Duration = Duration::from_secs(20);

/// Runs the benchmark.
///
/// # Errors
/// If the gateway or the kernel fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let (clients, messages) = (scaled(CLIENTS), scaled(MESSAGES));
    let mut section = Section::new(
        "Clients: a thousand on one kernel",
        format!(
            "{} WebSocket clients of the v1 subprotocol, each with its own session, all on one kernel of one \
             `kernelmux-gateway`. One of them has the kernel publish {} stream messages of 200 B of text, as fast as \
             Python sends them; each client reads until `idle`, and its messages are counted by message number. \
             Memory and CPU are the gateway's: its resident set, and user and system time from the request until the \
             last client has all messages. All clients run on one thread of the benchmark, which shares the cores \
             with the gateway and the kernel.",
            count(clients as u64),
            count(messages as u64)
        ),
    );
    process::allow_open_files()?;
    let gateway = Gateway::kernelmux(setup, "clients").await?;
    let kernel = gateway.address.start_kernel(FLOOD).await?;
    let mut first = gateway.address.channels(&kernel, "first").await?;
    tokio::time::sleep(PAUSE).await;
    let empty = process::memory(gateway.pid())?;
    let begun = Instant::now();
    let mut others = Vec::with_capacity(clients);
    for client in 1..clients {
        let session = format!("client-{client}");
        others.push(gateway.address.channels(&kernel, &session).await?);
    }
    let connected = begun.elapsed();
    tokio::time::sleep(PAUSE).await;
    let idle = process::memory(gateway.pid())?;

    process::reset_peak_memory(gateway.pid())?;
    let cpu = gateway.cpu()?;
    let begun = Instant::now();
    let flood = json!({"how": "pyzmq", "count": messages}).to_string();
    let request = Message::new(ExecuteRequest::new(flood), "first");
    first.send(Channel::Shell, &request.to_wire()).await?;
    let readers: Vec<_> = std::iter::once(first)
        .chain(others)
        .map(|client| {
            let request = request.header.msg_id.clone();
            tokio::spawn(async move { read(client, &request, messages).await })
        })
        .collect();
    let (mut lost, mut doubled, mut without_idle, mut fastest, mut slowest) = (0, 0, 0, Duration::MAX, Duration::ZERO);
    let mut open = Vec::with_capacity(clients);
    for reader in readers {
        let (client, got) = reader.await??;
        lost += got.lost;
        doubled += got.doubled;
        without_idle += u64::from(!got.idle);
        fastest = fastest.min(got.last - begun);
        slowest = slowest.max(got.last - begun);
        open.push(client);
    }
    let cpu = gateway.cpu()? - cpu;
    let peak = process::peak_memory(gateway.pid())?;
    drop(open);
    gateway.end()?;

    let delivered = (clients * messages) as u64 - lost;
    let each = |total: u64| total / clients as u64;
    section.table(&["", "all clients", "per client"]);
    section.row([
        "connecting, one after another".to_owned(),
        time(connected),
        time(connected / clients as u32),
    ]);
    section.row([
        "memory of idle clients".to_owned(),
        bytes(idle.saturating_sub(empty)),
        bytes(each(idle.saturating_sub(empty))),
    ]);
    section.row([
        "peak memory in the burst".to_owned(),
        bytes(peak.saturating_sub(empty)),
        bytes(each(peak.saturating_sub(empty))),
    ]);
    section.row([
        "messages delivered".to_owned(),
        count(delivered),
        count(each(delivered)),
    ]);
    section.row([
        "from the request until the first and the last client had all messages".to_owned(),
        time(slowest),
        format!("{} to {}", time(fastest), time(slowest)),
    ]);
    section.row([
        "delivered per second".to_owned(),
        per_second(delivered, slowest.as_secs_f64()),
        per_second(each(delivered), slowest.as_secs_f64()),
    ]);
    section.row(["CPU".to_owned(), time(cpu), time(cpu / clients as u32)]);
    section.row([
        "delivered per second and core".to_owned(),
        per_second(delivered, cpu.as_secs_f64().max(0.01)),
        String::new(),
    ]);
    for (what, number) in [
        ("lost, of all clients together", lost),
        ("doubled, of all clients together", doubled),
        ("clients without `idle`", without_idle),
    ] {
        section.target(what, "0", count(number), number == 0);
    }
    Ok(section)
}

/// Messages that a client received.
struct Received {
    lost: u64,
    doubled: u64,
    idle: bool,
    last: Instant,
}

/// Reads until the kernel is idle again or no message arrives for a while. Returns the client still connected, so that
/// the cost of disconnecting is not part of the burst.
async fn read(mut client: WebSocket, request: &str, messages: usize) -> Result<(WebSocket, Received)> {
    let mut seen = vec![false; messages];
    let mut got = Received {
        lost: messages as u64,
        doubled: 0,
        idle: false,
        last: Instant::now(),
    };
    while !got.idle {
        let Ok(data) = timeout(QUIET, client.receive()).await else {
            break;
        };
        let data = data?.ok_or("the WebSocket was closed")?;
        let message = V1Message::parse(&data)?;
        let header = HeaderRef::parse(message.header())?;
        match &*header.msg_type {
            "stream" => {
                let seen = seen.get_mut(usize::try_from(number(&header.msg_id)?)?);
                match seen.ok_or("a message that was not sent")? {
                    true => got.doubled += 1,
                    seen => {
                        *seen = true;
                        got.lost -= 1;
                    }
                }
                got.last = Instant::now();
            }
            "status" => {
                let content: serde_json::Value = serde_json::from_slice(message.content())?;
                let parent = HeaderRef::parse(message.parent_header());
                got.idle = content["execution_state"] == "idle" && parent.is_ok_and(|parent| parent.msg_id == request);
            }
            _ => {}
        }
    }
    Ok((client, got))
}
