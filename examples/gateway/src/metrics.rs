//! The counters and histograms of `GET /metrics`. The gauges, which are computed for each scrape, are in
//! `routes/metrics.rs`.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use kernel_manager::KernelEventKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of the duration histogram in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0];
/// The same for starts of kernels, which may wait for an image.
const START_BUCKETS: [f64; 8] = [0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct StartLabels {
    kernelspec: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
struct LimitLabels {
    limit: &'static str,
}

/// The counters. The number of series is bounded by routes, methods, statuses and kernelspecs.
pub(crate) struct Metrics {
    registry: Registry,
    events: Family<EventLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    starts: Family<StartLabels, Histogram>,
    start_phases: Family<PhaseLabels, Histogram>,
    refusals: Family<LimitLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let events = Family::default();
        let requests = Family::default();
        let durations: Family<_, Histogram> = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        // The registry appends `_total` to counters and a full stop to descriptions.
        registry.register("kernelmux_kernel_events", "Kernel events", events.clone());
        registry.register(
            "kernelmux_http_requests",
            "Requests that were answered",
            requests.clone(),
        );
        registry.register(
            "kernelmux_http_request_duration_seconds",
            "How long requests took; for a WebSocket, how long its handshake took",
            durations.clone(),
        );
        let starts: Family<_, Histogram> = Family::new_with_constructor(|| Histogram::new(START_BUCKETS));
        let start_phases: Family<_, Histogram> = Family::new_with_constructor(|| Histogram::new(START_BUCKETS));
        let refusals = Family::default();
        registry.register(
            "kernelmux_kernel_start_duration_seconds",
            "How long starts of kernels took, until the kernel answered or the start failed",
            starts.clone(),
        );
        registry.register(
            "kernelmux_kernel_start_phase_duration_seconds",
            "How long starts of kernels stayed in each phase",
            start_phases.clone(),
        );
        registry.register(
            "kernelmux_limit_refusals",
            "Requests that a limit refused",
            refusals.clone(),
        );
        Self {
            registry,
            events,
            requests,
            durations,
            starts,
            start_phases,
            refusals,
        }
    }
}

impl Metrics {
    /// Counts a request; `route` is its pattern, such as `/api/kernels/:id`.
    pub(crate) fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let requests = self.requests.get_or_create(&RequestLabels {
            method: known(method),
            route: route.to_owned(),
            status: status.as_u16(),
        });
        requests.inc();
        let durations = self.durations.get_or_create(&RouteLabels {
            route: route.to_owned(),
        });
        durations.observe(took.as_secs_f64());
    }

    /// Counts a start of a kernel of this kernelspec, which exists.
    pub(crate) fn start(&self, kernelspec: &str, is_started: bool, took: Duration) {
        let labels = StartLabels {
            kernelspec: kernelspec.to_owned(),
            outcome: if is_started { "started" } else { "failed" },
        };
        self.starts.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a phase of a start.
    pub(crate) fn start_phase(&self, phase: &'static str, took: Duration) {
        let labels = PhaseLabels { phase };
        self.start_phases.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a refusal by this limit.
    pub(crate) fn refusal(&self, limit: &'static str) {
        self.refusals.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts a kernel event.
    pub(crate) fn event(&self, kind: &KernelEventKind) {
        self.events.get_or_create(&EventLabels { event: name(kind) }).inc();
    }

    /// The counters to encode.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Maps unknown methods to `other`, because each method would be another series, and clients may invent methods.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn name(kind: &KernelEventKind) -> &'static str {
    match kind {
        KernelEventKind::Started => "started",
        KernelEventKind::Attached => "attached",
        KernelEventKind::RestartingByItself(_) => "restarting_by_itself",
        KernelEventKind::Restarted => "restarted",
        KernelEventKind::Dead(_) => "dead",
        KernelEventKind::Culled => "culled",
        KernelEventKind::ShutDown => "shut_down",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text;

    use super::*;

    #[test]
    fn counts_have_the_names_labels_and_buckets_that_dashboards_use() {
        let metrics = Metrics::default();
        let route = "/api/kernels/:id";
        metrics.request(&Method::GET, route, StatusCode::OK, Duration::from_millis(20));
        metrics.request(&Method::GET, route, StatusCode::OK, Duration::from_secs(70));
        metrics.request(
            &Method::from_bytes(b"BREW").unwrap(),
            "none",
            StatusCode::NOT_FOUND,
            Duration::ZERO,
        );
        metrics.event(&KernelEventKind::Culled);
        let mut text = String::new();
        prometheus_text::encode(&mut text, metrics.registry()).unwrap();
        for line in [
            "# TYPE kernelmux_kernel_events_total counter",
            "kernelmux_kernel_events_total{event=\"culled\"} 1",
            "# TYPE kernelmux_http_requests_total counter",
            "kernelmux_http_requests_total{method=\"GET\",route=\"/api/kernels/:id\",status=\"200\"} 2",
            "kernelmux_http_requests_total{method=\"other\",route=\"none\",status=\"404\"} 1",
            "# TYPE kernelmux_http_request_duration_seconds histogram",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"0.005\"} 0",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"0.025\"} 1",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"10\"} 1",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"+Inf\"} 2",
            "kernelmux_http_request_duration_seconds_sum{route=\"/api/kernels/:id\"} 70.02",
            "kernelmux_http_request_duration_seconds_count{route=\"/api/kernels/:id\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line}\n{text}");
        }
    }
}
