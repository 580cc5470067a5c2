//! What of a request's `env` becomes a kernel's environment, and what it says of the start itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::StatusCode;
use kernel_provider::KernelId;
use kernel_provider::manager::StartRequest;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The longest value, in characters.
const MAX_VALUE: usize = 4_096;

/// Takes the `KERNEL_*` variables of a request into the start.
pub(crate) fn apply(env: &Map<String, Value>, request: &mut StartRequest) -> Result<(), ApiError> {
    let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
    let mut kept = BTreeMap::new();
    for (key, value) in env {
        let Value::String(value) = value else {
            return Err(bad(format!("the environment variable {key} must be a string")));
        };
        if value.chars().count() > MAX_VALUE || value.contains(['\r', '\n', '\0']) || key.contains(['=', '\0']) {
            return Err(bad(format!(
                "the environment variable {key} has more than {MAX_VALUE} characters, or a line end or NUL"
            )));
        }
        if key.starts_with("KERNEL_") && !key.ends_with("_AUTH_TOKEN") {
            kept.insert(key.clone(), value.clone());
        }
    }
    let set = |key: &str| kept.get(key).filter(|value| !value.is_empty());
    if let Some(id) = set("KERNEL_ID") {
        let parsed = id.parse::<KernelId>().ok().filter(KernelId::is_random);
        request.id = Some(parsed.ok_or_else(|| bad("KERNEL_ID must be a UUID of version 4".to_owned()))?);
    }
    if let Some(seconds) = set("KERNEL_LAUNCH_TIMEOUT") {
        let seconds: f64 = seconds
            .parse()
            .ok()
            .filter(|seconds| (1.0..=3_600.0).contains(seconds))
            .ok_or_else(|| bad("KERNEL_LAUNCH_TIMEOUT must be a number of seconds, 1 to 3600".to_owned()))?;
        request.timeout = Duration::from_secs_f64(seconds);
    }
    request.owner = set("KERNEL_USERNAME").cloned();
    request.working_dir = set("KERNEL_WORKING_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    kept.insert("KERNEL_GATEWAY".to_owned(), "1".to_owned());
    request.env = kept;
    Ok(())
}
