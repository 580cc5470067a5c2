//! Agents: the memory of many idle ones, and how fast a gateway catches up after an outage.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, ConnectionInfo, Message};
use serde_json::json;
use tokio::time::sleep;

use crate::measure::{bytes, count, time};
use crate::peers::Gateway;
use crate::report::Section;
use crate::setup::{FLOOD_IPC, Setup, binary, scaled};
use crate::{Result, process};

/// Number of idle agents.
const AGENTS: usize = 1_000;
/// Messages that the kernel publishes while no gateway runs.
const MESSAGES: usize = 1_000_000;
/// Pause before measuring memory.
const PAUSE: Duration = Duration::from_secs(3);
/// A spool that has not grown for this long is complete.
const QUIET: Duration = Duration::from_secs(2);
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);
/// Targets: bytes of an agent's resident memory, bytes of its program, and MB per second after an outage.
const MAX_RESIDENT: u64 = 4_000_000;
const MAX_PROGRAM: u64 = 8_000_000;
const MIN_RATE: f64 = 300.0;
/// Name of the idle kernel's kernelspec.
const IDLE: &str = "idle-process";

/// Runs the benchmark.
///
/// # Errors
/// If a gateway or a kernel fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let agents = scaled(AGENTS);
    let messages = scaled(MESSAGES);
    let mut section = Section::new(
        "Agents: idle, and after an outage of the gateway",
        format!(
            "Idle: {} kernels made with `jupyter_protocol::kernel`, each a separate process with an agent. \
             Memory is that of the agents {} s after the last start. Outage: the gateway is killed while a Python \
             kernel publishes {} messages of about 680 B; its agent records them. Measured from the start of the next \
             gateway's process until it has stored all of them and reports the execution as ended; the bytes are those \
             of the agent's log.",
            count(agents as u64),
            PAUSE.as_secs(),
            count(messages as u64)
        ),
    );
    idle(setup, &mut section, agents).await?;
    outage(setup, &mut section, messages).await?;
    Ok(section)
}

async fn idle(setup: &Setup, section: &mut Section, agents: usize) -> Result<()> {
    let own = binary("kernelmux-benches")?;
    setup.write_spec(
        IDLE,
        json!({"argv": [own, "child", "idle-kernel", "{connection_file}"], "display_name": IDLE, "language": IDLE}),
    )?;
    let gateway = Gateway::kernelmux_with(setup, "agents", &["--agent", "auto"]).await?;
    for _ in 0..agents {
        gateway.address.start_kernel(IDLE).await?;
    }
    sleep(PAUSE).await;
    let found = agents_in(&setup.folder().join("agents"))?;
    if found.len() != agents {
        return Err(format!("{} agents run instead of {agents}", found.len()).into());
    }
    let mut resident = found
        .iter()
        .map(|agent| process::memory(*agent))
        .collect::<Result<Vec<_>>>()?;
    let mut own = found
        .iter()
        .map(|agent| process::own_memory(*agent))
        .collect::<Result<Vec<_>>>()?;
    resident.sort_unstable();
    own.sort_unstable();
    section.table(&["idle agents", "median", "largest"]);
    for (what, sizes) in [
        ("resident memory", &resident),
        ("resident memory that no file backs", &own),
    ] {
        let largest = sizes.last().copied().unwrap_or_default();
        section.row([what.to_owned(), bytes(sizes[sizes.len() / 2]), bytes(largest)]);
    }
    let median = resident[resident.len() / 2];
    section.target(
        format!("resident memory of an agent, of {}", count(agents as u64)),
        "≤ 4 MB",
        format!("{:.1} MB", median as f64 / 1e6),
        median <= MAX_RESIDENT,
    );
    let program = fs::metadata(binary("kernelmux-agent")?)?.len();
    section.target(
        "size of the program",
        "≤ 8 MB",
        format!("{:.1} MB", program as f64 / 1e6),
        program <= MAX_PROGRAM,
    );
    gateway.end()
}

/// The process ids of the agents of the gateway with this data folder.
fn agents_in(data: &Path) -> Result<Vec<u32>> {
    let folder = data.join("kernels/agents").to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The process may have ended meanwhile.
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = command.split('\0');
        if arguments
            .next()
            .is_some_and(|program| program.ends_with("kernelmux-agent"))
            && arguments.any(|argument| argument.starts_with(&folder))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

async fn outage(setup: &Setup, section: &mut Section, messages: usize) -> Result<()> {
    const DATA: &str = "outage";
    let flags = ["--agent", "auto", "--agent-spool-mib", "4096"];
    let gateway = Gateway::kernelmux_with(setup, DATA, &flags).await?;
    let kernel = gateway.address.start_kernel(FLOOD_IPC).await?;
    let mut client = gateway.address.channels(&kernel, "outage").await?;
    let flood = json!({"how": "pyzmq", "count": messages}).to_string();
    let request = Message::new(ExecuteRequest::new(flood), "outage");
    client.send(Channel::Shell, &request.to_wire()).await?;
    // The kernel has the request once its first message arrives.
    client.receive().await?;
    gateway.kill()?;
    let spool = setup.folder().join(DATA).join("kernels/agents");
    let (mut size, mut grown) = (0, Instant::now());
    while grown.elapsed() < QUIET {
        sleep(Duration::from_millis(50)).await;
        let now = size_of(&spool)?;
        if now != size {
            (size, grown) = (now, Instant::now());
        }
    }
    let begun = Instant::now();
    let gateway = Gateway::kernelmux_with(setup, DATA, &flags).await?;
    let execution = format!("/api/kernels/{kernel}/executions?limit=1");
    loop {
        let listed = gateway.address.call("GET", &execution, "").await?;
        if listed["executions"][0]["status"] == "ok" {
            break;
        }
        if begun.elapsed() > CATCH_UP_DEADLINE {
            return Err(format!("the gateway does not catch up: {listed}").into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed();
    let rate = size as f64 / 1e6 / took.as_secs_f64();
    section.table(&["after an outage", "recorded by the agent", "caught up after"]);
    section.row([format!("{} messages", count(messages as u64)), bytes(size), time(took)]);
    section.target(
        "catch-up after an outage",
        "≥ 300 MB/s",
        format!("{rate:.0} MB/s"),
        rate >= MIN_RATE,
    );
    gateway.end()
}

/// The size of all files in a folder and its subfolders.
fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        size += match entry.file_type()? {
            kind if kind.is_dir() => size_of(&entry.path())?,
            // A segment may have been removed meanwhile.
            _ => entry.metadata().map_or(0, |file| file.len()),
        };
    }
    Ok(size)
}

/// Runs an idle kernel, as a child process.
///
/// # Errors
/// If the connection file cannot be read or the sockets cannot be bound.
pub async fn idle_kernel(connection_file: &Path) -> Result<()> {
    let info = ConnectionInfo::read(connection_file)?;
    let server = jupyter_protocol::kernel::Server::bind(info, crate::idle::Idle).await?;
    server.run().await;
    Ok(())
}
