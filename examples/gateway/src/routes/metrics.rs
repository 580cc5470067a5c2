//! `GET /metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kernel_manager::ExecutionState;

use crate::Gateway;
use crate::metrics::Text;

/// All states, so that series do not come and go.
const STATES: [ExecutionState; 5] = [
    ExecutionState::Starting,
    ExecutionState::Idle,
    ExecutionState::Busy,
    ExecutionState::Restarting,
    ExecutionState::Dead,
];

pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut text = Text::default();
    text.family("kernelmux_build_info", "gauge", "The gateway's version.");
    text.sample("kernelmux_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let started = gateway.started.timestamp_millis() as f64 / 1e3;
    text.single(
        "process_start_time_seconds",
        "gauge",
        "When the gateway started, in Unix time.",
        started,
    );
    if let Some(bytes) = resident_bytes() {
        text.single(
            "process_resident_memory_bytes",
            "gauge",
            "How much memory the gateway holds.",
            bytes,
        );
    }
    if let Some(files) = open_files() {
        text.single(
            "process_open_fds",
            "gauge",
            "How many files and sockets the gateway has open.",
            files,
        );
    }

    let kernels = gateway.manager.list();
    let mut by_state: BTreeMap<&str, usize> = STATES.iter().map(|state| (state.as_str(), 0)).collect();
    let mut connections = 0;
    for kernel in &kernels {
        *by_state.entry(kernel.state().borrow().as_str()).or_default() += 1;
        connections += *kernel.connections().borrow();
    }
    text.family("kernelmux_kernels", "gauge", "Kernels by what they do.");
    for (state, count) in by_state {
        text.sample("kernelmux_kernels", &[("state", state)], count);
    }
    text.single(
        "kernelmux_connections",
        "gauge",
        "Clients that are attached to kernels.",
        connections,
    );
    let sessions = gateway.sessions.list(|kernel| gateway.lives(kernel)).len();
    text.single("kernelmux_sessions", "gauge", "Sessions with a kernel.", sessions);
    let specs = gateway.manager.specs().len();
    text.single(
        "kernelmux_kernelspecs",
        "gauge",
        "Kernelspecs that can be started.",
        specs,
    );
    gateway.metrics.write(&mut text);

    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text.finish()).into_response()
}

/// `None` on systems other than Linux.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

fn open_files() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}
