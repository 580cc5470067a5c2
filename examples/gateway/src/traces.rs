//! Spans for OpenTelemetry: of requests, and of starts of kernels. They are disabled unless a subscriber is interested
//! in their target.

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use jupyter_protocol::KernelId;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::request_log::RequestId;

/// The target of the spans that are meant for traces.
///
/// `tracing-opentelemetry` sends them to a collector; a log need not show them:
///
/// ```
/// use kernelmux_gateway::TRACES;
/// use tracing_subscriber::filter::filter_fn;
/// use tracing_subscriber::{Layer, fmt, layer::SubscriberExt as _};
///
/// let log = fmt::layer().with_filter(filter_fn(|metadata| metadata.target() != TRACES));
/// let subscriber = tracing_subscriber::registry().with(log);
/// # drop(subscriber);
/// ```
pub const TRACES: &str = "kernelmux_traces";

/// The span of a request. With the feature `otlp`, it belongs to the trace that the request's header `traceparent` names
/// (W3C Trace Context).
pub(crate) fn of_request(request: &Request, id: &RequestId) -> Span {
    let span = info_span!(
        target: TRACES,
        "request",
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = Empty,
        http.route = Empty,
        http.response.status_code = Empty,
        request_id = id.as_str(),
    );
    continue_trace(&span, request.headers());
    span
}

#[cfg(feature = "otlp")]
fn continue_trace(span: &Span, headers: &HeaderMap) {
    use opentelemetry::propagation::TextMapPropagator as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    if !span.is_disabled() {
        let propagator = opentelemetry_sdk::propagation::TraceContextPropagator::new();
        // Fails only if the span is not for OpenTelemetry.
        let _ = span.set_parent(propagator.extract(&opentelemetry_http::HeaderExtractor(headers)));
    }
}

#[cfg(not(feature = "otlp"))]
fn continue_trace(_: &Span, _: &HeaderMap) {}

/// Names the span by the route, which is known only afterwards.
#[cfg(feature = "otlp")]
fn rename(span: &Span, name: String) {
    use opentelemetry::trace::TraceContextExt as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    span.context().span().update_name(name);
}

/// Adds the answer to the span of its request. `route` is the route's pattern.
pub(crate) fn answered(span: &Span, method: &Method, route: &str, status: StatusCode) {
    if !span.is_disabled() {
        #[cfg(feature = "otlp")]
        rename(span, format!("{method} {route}"));
        span.record("http.request.method", method.as_str());
        span.record("http.route", route);
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// The span of a kernel's start. It must not be entered: spans of tasks that live as long as the kernel would belong to
/// it and keep it open.
pub(crate) fn of_start(kernel: KernelId, kernelspec: &str) -> Span {
    info_span!(
        target: TRACES,
        "start kernel",
        otel.status_code = Empty,
        otel.status_description = Empty,
        kernel_id = %kernel,
        kernelspec,
    )
}
