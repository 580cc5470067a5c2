//! Turns a request's `env` into a kernel's environment and start options.
//!
//! The kernel gets `KERNEL_*` and the variables in the gateway's `client_envs`. The provider decides which of the
//! gateway's own variables the kernel inherits.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jupyter_protocol::KernelId;
use serde_json::{Map, Value};
use tracing::info;

use crate::GatewayOptions;
use crate::error::ApiError;

/// Longest name in characters.
const MAX_NAME: usize = 256;
/// Maximum number of variables.
const MAX_VARIABLES: usize = 1_024;
/// Longest `KERNEL_LAUNCH_TIMEOUT` in seconds.
const MAX_TIMEOUT: f64 = 86_400.0;

/// A validated `env` of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Environment {
    /// Variables for the kernel.
    pub(crate) variables: BTreeMap<String, String>,
    /// `KERNEL_ID`.
    pub(crate) id: Option<KernelId>,
    /// `KERNEL_LAUNCH_TIMEOUT`.
    pub(crate) timeout: Option<Duration>,
    /// `KERNEL_USERNAME`.
    pub(crate) username: Option<String>,
    /// `KERNEL_WORKING_DIR`, if that folder exists.
    pub(crate) working_dir: Option<PathBuf>,
}

impl Environment {
    /// Selects the allowed variables; 400 if one of them is invalid.
    pub(crate) fn read(env: &Map<String, Value>, options: &GatewayOptions) -> Result<Self, ApiError> {
        let mut variables = BTreeMap::new();
        for (name, value) in env.iter().filter(|(name, _)| is_passed_on(name, &options.client_envs)) {
            variables.insert(name.clone(), checked(name, value)?.to_owned());
        }
        if variables.len() > MAX_VARIABLES {
            return Err(ApiError::bad_request(format!(
                "more than {MAX_VARIABLES} environment variables"
            )));
        }
        let get = |name: &str| variables.get(name).map(String::as_str);
        Ok(Self {
            id: get("KERNEL_ID").map(|id| kernel_id("KERNEL_ID", id)).transpose()?,
            timeout: get("KERNEL_LAUNCH_TIMEOUT").map(launch_timeout).transpose()?,
            username: get("KERNEL_USERNAME")
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            working_dir: get("KERNEL_WORKING_DIR").and_then(existing_dir),
            variables,
        })
    }
}

/// Whether the kernel gets the variable. Servers' tokens are never passed on, even if `client_envs` names them.
fn is_passed_on(name: &str, client_envs: &[String]) -> bool {
    let is_named = || client_envs.iter().any(|named| named == "*" || named == name);
    !name.ends_with("_AUTH_TOKEN") && (name.starts_with("KERNEL_") || is_named())
}

fn checked<'a>(name: &str, value: &'a Value) -> Result<&'a str, ApiError> {
    if name.is_empty() || name.chars().count() > MAX_NAME || name.contains(['=', '\0', '\r', '\n']) {
        let shown: String = name.chars().take(64).collect();
        return Err(ApiError::bad_request(format!(
            "{shown:?} cannot be an environment variable: its name must have 1 to {MAX_NAME} characters, and no '=', \
             line end or NUL"
        )));
    }
    let Value::String(value) = value else {
        return Err(ApiError::bad_request(format!(
            "the environment variable {name} must be a string"
        )));
    };
    // The limit on the request body also bounds the length of the value.
    if value.contains('\0') {
        return Err(ApiError::bad_request(format!(
            "the environment variable {name} contains a NUL character, which environments do not support"
        )));
    }
    Ok(value)
}

/// A kernel id chosen by the client in `field`.
pub(crate) fn kernel_id(field: &str, text: &str) -> Result<KernelId, ApiError> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("{field} must be a UUID, with hyphens")))
}

fn launch_timeout(text: &str) -> Result<Duration, ApiError> {
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= MAX_TIMEOUT)
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "KERNEL_LAUNCH_TIMEOUT must be a number of seconds, up to {MAX_TIMEOUT}"
            ))
        })
}

/// The folder, if it is absolute and exists here. Clients may send folders of their own machine.
fn existing_dir(text: &str) -> Option<PathBuf> {
    let dir = Path::new(text);
    if dir.is_absolute() && dir.is_dir() {
        return Some(dir.to_owned());
    }
    if !text.is_empty() {
        info!(
            working_dir = text,
            "KERNEL_WORKING_DIR does not exist here; the kernel starts in another folder"
        );
    }
    None
}

/// The deepest existing folder on `path` within `root`. The kernel of a notebook with this path starts there, as with
/// jupyter_server. `None` if the path leaves the root or contains a NUL.
pub(crate) fn dir_of(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    let is_below = relative
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !is_below || path.contains('\0') {
        return None;
    }
    let full = root.join(relative);
    full.ancestors()
        .take_while(|dir| dir.starts_with(root))
        .find(|dir| dir.is_dir())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Access;

    fn read(env: Value, client_envs: &[&str]) -> Result<Environment, String> {
        let mut options = GatewayOptions::new(Access::Open);
        options.client_envs = client_envs.iter().map(|name| (*name).to_owned()).collect();
        let Value::Object(env) = env else {
            panic!("env must be an object")
        };
        Environment::read(&env, &options).map_err(|error| {
            assert_eq!(error.status(), 400);
            format!("{error:?}")
        })
    }

    #[test]
    fn only_allowed_variables_pass() {
        let env = json!({
            "KERNEL_X": "1", "LANG": "C", "PATH": "/bin", "KERNEL_AUTH_TOKEN": "no", "GIT_AUTH_TOKEN": "no",
            "kernel_y": "no", "OTHER": 7,
        });
        let names = |client_envs: &[&str]| {
            let read = read(env.clone(), client_envs).unwrap();
            read.variables.into_keys().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&[]), "KERNEL_X");
        assert_eq!(names(&["LANG", "GIT_AUTH_TOKEN"]), "KERNEL_X LANG");
        assert!(
            read(env.clone(), &["*"])
                .unwrap_err()
                .contains("OTHER must be a string")
        );
    }

    #[test]
    fn bad_values_are_refused_and_named() {
        let long = "x".repeat(MAX_NAME);
        for value in [json!(1), json!(null), json!([]), json!({}), json!("\0")] {
            let message = read(json!({"KERNEL_X": value}), &[]).unwrap_err();
            assert!(message.contains("KERNEL_X"), "{message}");
        }
        for value in ["a\nb\r\n", &"ü".repeat(50_000)] {
            let read = read(json!({"KERNEL_X": value}), &[]).unwrap();
            assert_eq!(read.variables["KERNEL_X"], value);
        }
        for name in ["KERNEL_X=Y", "KERNEL_\0", "KERNEL_\n", &format!("KERNEL_{long}")] {
            assert!(read(json!({name: "1"}), &[]).is_err(), "{name:?}");
        }
        let many: Map<String, Value> = (0..=MAX_VARIABLES)
            .map(|i| (format!("KERNEL_{i}"), json!("")))
            .collect();
        assert!(read(many.into(), &[]).is_err());
    }

    #[test]
    fn kernel_variables_set_the_start_options() {
        let dir = tempfile::tempdir().unwrap();
        let id = KernelId::random();
        let read_all = read(
            json!({
                "KERNEL_ID": id.to_string(), "KERNEL_LAUNCH_TIMEOUT": "40.5", "KERNEL_USERNAME": "ada",
                "KERNEL_WORKING_DIR": dir.path().to_str().unwrap(),
            }),
            &[],
        )
        .unwrap();
        assert_eq!(read_all.id, Some(id));
        assert_eq!(read_all.timeout, Some(Duration::from_millis(40_500)));
        assert_eq!(read_all.username.as_deref(), Some("ada"));
        assert_eq!(read_all.working_dir.as_deref(), Some(dir.path()));
        for (name, value) in [
            ("KERNEL_ID", "seven"),
            ("KERNEL_ID", ""),
            ("KERNEL_ID", "../../etc/passwd"),
            ("KERNEL_ID", "6ba7b8109dad11d180b400c04fd430c8"),
            ("KERNEL_LAUNCH_TIMEOUT", "soon"),
            ("KERNEL_LAUNCH_TIMEOUT", ""),
            ("KERNEL_LAUNCH_TIMEOUT", "-1"),
            ("KERNEL_LAUNCH_TIMEOUT", "0"),
            ("KERNEL_LAUNCH_TIMEOUT", "nan"),
            ("KERNEL_LAUNCH_TIMEOUT", "inf"),
            ("KERNEL_LAUNCH_TIMEOUT", "1e300"),
        ] {
            assert!(read(json!({name: value}), &[]).is_err(), "{name}={value}");
        }
        let lenient = read(
            json!({"KERNEL_USERNAME": "", "KERNEL_WORKING_DIR": "/nowhere/at/all"}),
            &[],
        )
        .unwrap();
        assert_eq!((lenient.username, lenient.working_dir), (None, None));
    }

    #[test]
    fn a_path_maps_to_its_deepest_existing_folder_within_the_root() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/n.ipynb"), "").unwrap();
        for (path, expected) in [
            ("", ""),
            ("a/b", "a/b"),
            ("/a/b/", "a/b"),
            ("a/n.ipynb", "a"),
            ("a/b/c/d", "a/b"),
            ("none", ""),
        ] {
            assert_eq!(dir_of(root, path), Some(root.join(expected)), "{path}");
        }
        for path in ["..", "a/../..", "../a", "\0"] {
            assert_eq!(dir_of(root, path), None, "{path:?}");
        }
    }
}
