//! Kernels as they appear in responses.

use chrono::{DateTime, SecondsFormat, Utc};
use kernel_manager::{ExecutionState, Kernel};
use kernel_provider::Phase;
use serde_json::{Value, json};

/// A timestamp in the form that jupyter_server's gateway client parses: six decimals and `Z`.
pub(crate) fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// `{id, name, last_activity, execution_state, connections}`, and `reason` if it is dead.
pub(crate) fn kernel(kernel: &Kernel) -> Value {
    let state = *kernel.state().borrow();
    let mut model = json!({
        "id": kernel.id(),
        "name": kernel.spec_name(),
        "last_activity": timestamp(kernel.last_activity()),
        "execution_state": state.as_str(),
        "connections": *kernel.connections().borrow(),
    });
    if state == ExecutionState::Dead
        && let Phase::Exited(exit) = &*kernel.handle().phase().borrow()
    {
        model["reason"] = exit.cause.to_string().into();
    }
    model
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
