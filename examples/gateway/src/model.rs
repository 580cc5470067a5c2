//! Kernels as they appear in responses.

use chrono::{DateTime, SecondsFormat, Utc};
use jupyter_protocol::KernelId;
use kernel_manager::{ExecutionState, Kernel};
use kernel_provider::Phase;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

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
    /// The number of attached clients.
    connections: usize,
    /// Why the kernel is dead; absent unless it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

impl From<&Kernel> for KernelModel {
    fn from(kernel: &Kernel) -> Self {
        let state = *kernel.state().borrow();
        let reason = match &*kernel.handle().phase().borrow() {
            Phase::Exited(exit) if state == ExecutionState::Dead => Some(exit.cause.to_string()),
            _ => None,
        };
        Self {
            id: kernel.id(),
            name: kernel.spec_name().to_owned(),
            last_activity: timestamp(kernel.last_activity()),
            execution_state: state,
            connections: *kernel.connections().borrow(),
            reason,
        }
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
