//! `GET /metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel_manager::ExecutionState;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::Gateway;
use crate::error::ApiError;
use crate::model::STATES;

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct LinkLabels {
    connected: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct SpecLabels {
    kernelspec: String,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct GroupLabels {
    group: String,
}

/// Metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "api", operation_id = "metrics",
    responses(
        (status = 200, description = "Text format 0.0.4", body = String),
        (status = 403, description = "The client's role may not see the metrics"),
    ),
)]
pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_text::encode(&mut text, &current(&gateway))
        .and_then(|()| prometheus_text::encode(&mut text, gateway.metrics.registry()))
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response())
}

/// The metrics that are computed for each scrape.
fn current(gateway: &Gateway) -> Registry {
    let mut registry = Registry::default();
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("kernelmux_build", "The gateway's version", version);
    registry.register(
        "process_start_time_seconds",
        "When the gateway started, in Unix time",
        ConstGauge::new(gateway.started.timestamp_millis() as f64 / 1e3),
    );
    if let Some(bytes) = resident_bytes() {
        registry.register(
            "process_resident_memory_bytes",
            "How much memory the gateway holds",
            ConstGauge::new(bytes),
        );
    }
    if let Some(files) = open_files() {
        registry.register(
            "process_open_fds",
            "How many files and sockets the gateway has open",
            ConstGauge::new(files),
        );
    }

    let by_state = Family::<StateLabels, Gauge>::default();
    // All states, so that series do not come and go.
    for state in STATES.map(ExecutionState::as_str) {
        by_state.get_or_create(&StateLabels { state }).set(0);
    }
    let by_spec = Family::<SpecLabels, Gauge>::default();
    let by_group = Family::<GroupLabels, Gauge>::default();
    for (group, _) in &gateway.options().groups {
        by_group.get_or_create(&GroupLabels { group: group.clone() }).set(0);
    }
    let links = Family::<LinkLabels, Gauge>::default();
    for connected in ["true", "false"] {
        links.get_or_create(&LinkLabels { connected }).set(0);
    }
    let mut connections = 0;
    let mut log_bytes = 0;
    let mut unrecorded = 0;
    for kernel in gateway.manager.list() {
        let state = kernel.state().borrow().as_str();
        by_state.get_or_create(&StateLabels { state }).inc();
        let kernelspec = kernel.spec_name().to_owned();
        by_spec.get_or_create(&SpecLabels { kernelspec }).inc();
        for group in kernel.groups() {
            by_group.get_or_create(&GroupLabels { group }).inc();
        }
        connections += *kernel.connections().borrow();
        log_bytes += kernel.log().bytes();
        unrecorded += u64::from(!kernel.log().is_recorded());
        if let Some(link) = kernel.handle().agent() {
            let connected = if link.is_connected() { "true" } else { "false" };
            links.get_or_create(&LinkLabels { connected }).inc();
        }
    }
    registry.register("kernelmux_kernels", "Kernels by state", by_state);
    registry.register("kernelmux_kernels_by_kernelspec", "Kernels by kernelspec", by_spec);
    registry.register(
        "kernelmux_kernels_by_group",
        "Kernels of the members of groups with rules",
        by_group,
    );
    registry.register(
        "kernelmux_log_bytes",
        "The size of the running kernels' logs",
        ConstGauge::new(log_bytes),
    );
    registry.register(
        "kernelmux_agent_links",
        "Kernels with an agent, by whether the gateway is connected to it",
        links,
    );
    messages_and_logs(&mut registry, gateway, unrecorded);
    if let Some(audit) = &gateway.options().audit {
        registry.register(
            "kernelmux_audit_log_failures",
            "Lines that could not be written to the audit log",
            ConstCounter::new(audit.failures()),
        );
    }
    registry.register(
        "kernelmux_connections",
        "Clients that are attached to kernels",
        ConstGauge::new(connections),
    );
    let sessions = gateway.sessions.list(|kernel| gateway.has_kernel(kernel)).len();
    registry.register(
        "kernelmux_sessions",
        "Sessions with a kernel",
        ConstGauge::new(sessions),
    );
    registry.register(
        "kernelmux_kernelspecs",
        "Kernelspecs that can be started",
        ConstGauge::new(gateway.manager.specs().len()),
    );
    registry
}

/// What kernels sent and the store accepted; `unrecorded` logs are those whose newest entries the store refused.
fn messages_and_logs(registry: &mut Registry, gateway: &Gateway, unrecorded: u64) {
    let logs = gateway.manager.logs();
    let stored = logs.counters();
    registry.register(
        "kernelmux_log_entries",
        "Messages of kernels and clients that were stored",
        ConstCounter::new(stored.entries),
    );
    registry.register(
        "kernelmux_log_stored_bytes",
        "The size of these messages",
        ConstCounter::new(stored.bytes),
    );
    registry.register(
        "kernelmux_log_refused_writes",
        "Writes to logs that the store refused",
        ConstCounter::new(stored.refused_writes),
    );
    registry.register(
        "kernelmux_log_waiting_bytes",
        "Bytes that wait to be stored",
        ConstGauge::new(logs.waiting_bytes() as u64),
    );
    registry.register(
        "kernelmux_logs_not_recorded",
        "Logs of running kernels whose newest messages the store refused",
        ConstGauge::new(unrecorded),
    );
    let refused = gateway.manager.refused_messages();
    let by_reason = Family::<ReasonLabels, Counter>::default();
    for (reason, count) in [("invalid", refused.invalid), ("skipped", refused.skipped)] {
        by_reason.get_or_create(&ReasonLabels { reason }).inc_by(count);
    }
    registry.register(
        "kernelmux_refused_messages",
        "Messages of kernels that were not recorded, because they are invalid or too large",
        by_reason,
    );
    registry.register(
        "kernelmux_largest_reader_lag_entries",
        "How many messages the client that is furthest behind has not been sent",
        ConstGauge::new(gateway.positions.largest_lag()),
    );
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
