//! The Prometheus metrics of `GET /metrics`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use kernel_manager::KernelEventKind;

/// Upper bounds of the duration histogram in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0];

/// The counters. The number of series is bounded by routes, methods and statuses.
#[derive(Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<(&'static str, String, u16), u64>,
    durations: BTreeMap<String, Durations>,
    events: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

impl Metrics {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request; `route` is its pattern, such as `/api/kernels/:id`.
    pub(crate) fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let mut counts = self.lock();
        *counts
            .requests
            .entry((known(method), route.to_owned(), status.as_u16()))
            .or_default() += 1;
        let durations = counts.durations.entry(route.to_owned()).or_default();
        durations.count += 1;
        durations.sum += took;
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// Counts a kernel event.
    pub(crate) fn event(&self, kind: &KernelEventKind) {
        *self.lock().events.entry(name(kind)).or_default() += 1;
    }

    /// Writes all metrics.
    pub(crate) fn write(&self, text: &mut Text) {
        let counts = self.lock();
        text.family("kernelmux_kernel_events_total", "counter", "What happened to kernels.");
        for (event, count) in &counts.events {
            text.sample("kernelmux_kernel_events_total", &[("event", event)], *count);
        }
        text.family(
            "kernelmux_http_requests_total",
            "counter",
            "Requests that were answered.",
        );
        for ((method, route, status), count) in &counts.requests {
            let labels = [("method", *method), ("route", route), ("status", &status.to_string())];
            text.sample("kernelmux_http_requests_total", &labels, *count);
        }
        let name = "kernelmux_http_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "How long requests took; a WebSocket's is its handshake.",
        );
        for (route, durations) in &counts.durations {
            for (count, bound) in durations.buckets.iter().zip(BUCKETS) {
                let labels = [("route", route.as_str()), ("le", &bound.to_string())];
                text.sample(&format!("{name}_bucket"), &labels, *count);
            }
            text.sample(
                &format!("{name}_bucket"),
                &[("route", route), ("le", "+Inf")],
                durations.count,
            );
            text.sample(&format!("{name}_sum"), &[("route", route)], durations.sum.as_secs_f64());
            text.sample(&format!("{name}_count"), &[("route", route)], durations.count);
        }
    }
}

/// Clients may invent methods, each of which would be another series.
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

/// The text format of Prometheus, version 0.0.4.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
#[derive(Default)]
pub(crate) struct Text(String);

impl Text {
    /// Begins a metric family.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// Writes a sample of the current family.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    /// Writes a family with one sample.
    pub(crate) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_as_prometheus_reads_them() {
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
        let mut text = Text::default();
        metrics.write(&mut text);
        text.single("x", "gauge", "X.", 1);
        text.family("y", "gauge", "Y.");
        text.sample("y", &[("a", "b\"\\\n")], 0.5);
        let text = text.finish();
        for line in [
            "kernelmux_kernel_events_total{event=\"culled\"} 1",
            "kernelmux_http_requests_total{method=\"GET\",route=\"/api/kernels/:id\",status=\"200\"} 2",
            "kernelmux_http_requests_total{method=\"other\",route=\"none\",status=\"404\"} 1",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"0.005\"} 0",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"0.025\"} 1",
            "kernelmux_http_request_duration_seconds_bucket{route=\"/api/kernels/:id\",le=\"+Inf\"} 2",
            "kernelmux_http_request_duration_seconds_sum{route=\"/api/kernels/:id\"} 70.02",
            "# TYPE x gauge",
            "x 1",
            "y{a=\"b\\\"\\\\\\n\"} 0.5",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line}\n{text}");
        }
    }
}
