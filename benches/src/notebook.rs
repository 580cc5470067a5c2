//! Compares opening a notebook whose outputs are in the kernel's log with one whose outputs are saved in the file.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::Result;
use crate::measure::{Times, bytes, ratio, time};
use crate::report::Section;
use crate::setup::{binary, root, scaled};

/// The number of measured openings of each notebook. One more, before them, is not measured.
const ROUNDS: usize = 10;
/// Targets: extra time over stock JupyterLab, and received bytes relative to the bytes of the outputs.
const MAX_EXTRA_TIME: Duration = Duration::from_secs(1);
const MAX_RECEIVED: f64 = 2.0;

/// The output of `reopen.py`.
#[derive(Deserialize)]
struct Measured {
    stock: Vec<Opened>,
    restored: Vec<Opened>,
}

/// The measurement of one page.
#[derive(Deserialize)]
struct Opened {
    seconds: f64,
    /// Bytes that the page received from its kernel and the gateway.
    received: u64,
    /// Bytes of the outputs in the notebook's format.
    outputs: u64,
}

/// Runs the benchmark.
///
/// # Errors
/// If the environment of the end-to-end tests, Node or Chromium cannot be installed, or a page does not show the
/// notebook.
pub fn run() -> Result<Section> {
    let mut section = Section::new(
        "Notebook: reopened from the log",
        "JupyterLab in Chromium opens a notebook of 300 cells that printed 10,000 lines of about 80 characters. Stock: \
         JupyterLab runs the kernel itself, and the outputs are saved in the file. Restored: JupyterLab has \
         kernelmux-lab and the gateway. The page in which the cells ran was closed without saving, so all outputs \
         come from the kernel's log. The two are opened alternately, each page in a new browser profile. The time \
         ends when all cells are in the page with all of their lines. Received: bytes from WebSockets and from the \
         gateway's API, relative to the outputs as JSON in the notebook's format.",
    );
    let environment = Command::new(root().join("scripts/e2e-env.sh"))
        .stdout(Stdio::null())
        .status()?;
    if !environment.success() {
        return Err(format!("scripts/e2e-env.sh: {environment}").into());
    }
    let python = root().join("target/e2e-venv/bin/python");
    let output = Command::new(python)
        .arg(root().join("benches/notebook/reopen.py"))
        .arg(binary("kernelmux-gateway")?)
        .arg(scaled(ROUNDS).to_string())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("reopen.py: {}", output.status).into());
    }
    let Measured { stock, restored } = serde_json::from_slice(&output.stdout)?;
    let most = |opened: &[Opened]| opened.iter().map(|page| page.received).max().unwrap_or_default();
    let outputs = restored.iter().map(|page| page.outputs).min().unwrap_or_default();
    let times = |opened: &[Opened]| {
        let seconds = opened.iter().map(|page| Duration::from_secs_f64(page.seconds));
        Times::new(seconds.collect())
    };
    let [stock_times, restored_times] = [times(&stock), times(&restored)];
    section.table(&["", "pages", "p50", "p90", "received", "outputs"]);
    for (name, opened, times) in [
        ("stock", &stock, &stock_times),
        ("restored", &restored, &restored_times),
    ] {
        section.row([
            name.to_owned(),
            times.runs().to_string(),
            time(times.median()),
            time(times.percentile(90)),
            bytes(most(opened)),
            bytes(outputs),
        ]);
    }
    let more = restored_times.median().saturating_sub(stock_times.median());
    section.target("p50, extra time over stock", "< 1 s", time(more), more < MAX_EXTRA_TIME);
    #[allow(clippy::cast_precision_loss, reason = "far fewer bytes than 2^52")]
    let received = most(&restored) as f64 / outputs.max(1) as f64;
    section.target(
        "received, against the outputs",
        "≤ 2×",
        ratio(received),
        received <= MAX_RECEIVED,
    );
    Ok(section)
}
