//! Kernels as they appear in responses.

use chrono::{DateTime, SecondsFormat, Utc};
use jupyter_protocol::KernelId;
use kernel_log::Epoch;
use kernel_manager::{ExecutionState, Kernel};
use kernel_provider::{KernelRecord, Phase, Usage};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::launches::KernelPhase;
use crate::profiles::Resources;
use crate::routes::progress_of_kernel;
use crate::{Gateway, GatewayOptions};

/// All states of kernels.
pub(crate) const STATES: [ExecutionState; 5] = [
    ExecutionState::Starting,
    ExecutionState::Idle,
    ExecutionState::Busy,
    ExecutionState::Restarting,
    ExecutionState::Dead,
];

/// A kernel.
#[derive(Serialize, ToSchema)]
#[schema(as = Kernel)]
pub(crate) struct KernelModel {
    #[schema(value_type = Uuid)]
    id: KernelId,
    /// The name of its kernelspec.
    name: String,
    /// When it last sent or received a message, in UTC with six digits after the point.
    #[schema(format = DateTime)]
    last_activity: String,
    #[schema(schema_with = execution_state)]
    execution_state: ExecutionState,
    /// The number of attached sessions.
    connections: usize,
    /// Why the kernel is dead; absent unless it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// Facts that other gateways do not report.
    kernelmux: FactsModel,
}

/// The parts of the API beyond what Jupyter clients expect.
const FEATURES: &[&str] = &[
    "follow",
    "comms",
    "kernel_info",
    "latest_cell",
    "answered",
    "progress",
    "profiles",
    "usage",
    SHARES,
];
const SHARES: &str = "shares";

/// The features of a gateway with these options.
pub(crate) fn features(options: &GatewayOptions) -> Vec<&'static str> {
    let all = FEATURES.iter().copied();
    all.filter(|feature| options.allow_shares || *feature != SHARES)
        .collect()
}
/// The version of the members that other gateways do not have. It increases when one changes incompatibly.
pub(crate) const VERSION: u32 = 1;

/// The members of a kernel that other gateways do not have.
#[derive(Serialize, ToSchema)]
#[schema(as = KernelFacts)]
struct FactsModel {
    /// Increases when a member changes incompatibly.
    version: u32,
    /// Names of features that other gateways do not have.
    features: Vec<&'static str>,
    /// The epoch of its log.
    #[schema(value_type = String)]
    epoch: Epoch,
    #[schema(inline)]
    phase: KernelPhase,
    /// Why the kernel is dead; null unless it is.
    reason: Option<String>,
    /// The display name of its kernelspec; null if that no longer exists.
    kernelspec: Option<String>,
    /// Its pod, or else the name of its provider, such as `local`.
    place: String,
    /// When it was started.
    #[schema(format = DateTime)]
    started: String,
    /// The resources that the client requested; they do not limit kernels that are processes. Null if it requested none.
    resources: Option<Resources>,
    /// The resources that it uses; absent unless they were requested, and null if they cannot be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    usage: Option<Option<UsageModel>>,
    /// Always null: a culled kernel is no longer listed. Its progress has the time.
    #[schema(format = DateTime)]
    culled_at: Option<String>,
}

/// The resources that a kernel and the processes that it started use.
#[derive(Serialize, ToSchema)]
#[schema(as = KernelUsage)]
struct UsageModel {
    /// CPU time of all cores so far, in seconds.
    cpu_seconds: f64,
    /// Resident memory, in bytes.
    memory_bytes: u64,
}

/// Why the kernel is dead; `None` unless it is.
pub(crate) fn reason_of(kernel: &Kernel) -> Option<String> {
    match &*kernel.handle().phase().borrow() {
        Phase::Exited(exit) if *kernel.state().borrow() == ExecutionState::Dead => {
            Some(kernel.end_cause().unwrap_or(&exit.cause).to_string())
        }
        _ => None,
    }
}

fn place(record: &KernelRecord) -> String {
    match record.data.get("pod").and_then(Value::as_str) {
        Some(pod) => format!("pod {pod}"),
        None => record.provider.clone(),
    }
}

impl KernelModel {
    pub(crate) fn new(gateway: &Gateway, kernel: &Kernel) -> Self {
        let state = *kernel.state().borrow();
        let reason = reason_of(kernel);
        let record = kernel.handle().record();
        let kernelmux = FactsModel {
            version: VERSION,
            features: features(&gateway.options()),
            epoch: kernel.log().epoch(),
            phase: progress_of_kernel(kernel).phase,
            reason: reason.clone(),
            kernelspec: kernel.spec().map(|spec| spec.spec.display_name.clone()),
            place: place(&record),
            started: timestamp(kernel.launched()),
            resources: Resources::of_record(&record),
            usage: None,
            culled_at: None,
        };
        Self {
            kernelmux,
            id: kernel.id(),
            name: kernel.spec_name().to_owned(),
            last_activity: timestamp(kernel.last_activity()),
            execution_state: state,
            connections: *kernel.connections().borrow(),
            reason,
        }
    }

    /// Adds the resources that the kernel uses.
    pub(crate) fn with_usage(mut self, usage: Option<Usage>) -> Self {
        self.kernelmux.usage = Some(usage.map(|usage| UsageModel {
            cpu_seconds: usage.cpu.as_secs_f64(),
            memory_bytes: usage.memory,
        }));
        self
    }
}

fn execution_state() -> Object {
    one_of(STATES.map(ExecutionState::as_str))
}

/// The schema of a string with these values.
pub(crate) fn one_of(values: impl IntoIterator<Item = &'static str>) -> Object {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    schema.enum_values(Some(values)).build()
}

/// A timestamp in the form that jupyter_server's gateway client parses: six decimals and `Z`.
pub(crate) fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_always_have_six_decimals() {
        for (time, expected) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
            ("2026-01-02T03:04:05.123456789+01:00", "2026-01-02T02:04:05.123456Z"),
        ] {
            assert_eq!(timestamp(time.parse().unwrap()), expected);
        }
    }
}
