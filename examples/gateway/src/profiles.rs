//! Resource profiles: named choices of a kernelspec, such as "1 GPU". A start selects one of them.
//!
//! ```json
//! "metadata": {"kernelmux": {"profiles": [
//!   {"name": "CPU", "resources": {"cpu": "2", "memory": "4Gi"}},
//!   {"name": "1 GPU", "resources": {"gpu": "1"}, "env": {"KERNEL_IMAGE": "…"}}
//! ]}}
//! ```

use std::collections::BTreeMap;

use jupyter_protocol::Kernelspec;
use kernel_provider::{KernelRecord, own_metadata};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;

/// The variable that names the profile of a start.
pub(crate) const VARIABLE: &str = "KERNEL_PROFILE";
/// Variables that a profile cannot set, because they take effect before the profile is applied.
const NOT_SET: [&str; 4] = [
    "KERNEL_ID",
    "KERNEL_LAUNCH_TIMEOUT",
    "KERNEL_USERNAME",
    "KERNEL_WORKING_DIR",
];
/// The most profiles of a kernelspec. Further ones are ignored.
const MAX_PROFILES: usize = 64;

/// The resources that a start requests, in the units of its provider, such as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) gpu: Option<String>,
}

/// The members of [`Resources`] and the variables that request them.
const VARIABLES: [(&str, &str); 3] = [
    ("cpu", "KERNEL_CPUS"),
    ("memory", "KERNEL_MEMORY"),
    ("gpu", "KERNEL_GPUS"),
];

/// The annotations of a kernel that store the members of [`Resources`].
const ANNOTATIONS: [&str; 3] = ["resources.cpu", "resources.memory", "resources.gpu"];

impl Resources {
    /// The resources that the environment requests; `None` if there are none.
    pub(crate) fn of(env: &BTreeMap<String, String>) -> Option<Self> {
        let [cpu, memory, gpu] = VARIABLES.map(|(_, variable)| env.get(variable).cloned());
        let resources = Self { cpu, memory, gpu };
        (resources != Self::default()).then_some(resources)
    }

    /// The variables that request resources.
    pub(crate) fn variables() -> impl Iterator<Item = String> {
        let variables = VARIABLES.into_iter();
        variables.flat_map(|(_, variable)| [variable.to_owned(), format!("{variable}_LIMIT")])
    }

    /// Records the resources in the annotations of a kernel, from which [`of_record`](Self::of_record) reads them.
    pub(crate) fn annotate(self, annotations: &mut BTreeMap<String, String>) {
        let Self { cpu, memory, gpu } = self;
        for (name, value) in ANNOTATIONS.into_iter().zip([cpu, memory, gpu]) {
            annotations.extend(value.map(|value| (name.to_owned(), value)));
        }
    }

    /// The resources that a kernel's start requested; `None` if it requested none.
    pub(crate) fn of_record(record: &KernelRecord) -> Option<Self> {
        let [cpu, memory, gpu] = ANNOTATIONS.map(|name| record.annotations.get(name).cloned());
        let resources = Self { cpu, memory, gpu };
        (resources != Self::default()).then_some(resources)
    }
}

#[derive(Deserialize)]
struct Profile {
    name: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    resources: BTreeMap<String, Value>,
}

/// Sets the variables of the profile that `env` names. They replace the client's.
///
/// 400 if the kernelspec has no such profile, or the profile is malformed or sets a variable that it may not.
pub(crate) fn apply(spec: &Kernelspec, env: &mut BTreeMap<String, String>) -> Result<(), ApiError> {
    let Some(wanted) = env.get(VARIABLE).filter(|name| !name.is_empty()).cloned() else {
        return Ok(());
    };
    let profiles = own_metadata(spec, "profiles").and_then(Value::as_array);
    let profiles = || profiles.into_iter().flatten().take(MAX_PROFILES);
    let name_of = |profile: &Value| profile.get("name").and_then(Value::as_str).map(str::to_owned);
    let Some(profile) = profiles().find(|profile| name_of(profile).as_ref() == Some(&wanted)) else {
        let known: Vec<_> = profiles().filter_map(name_of).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(ApiError::bad_request(format!(
            "{VARIABLE}: the kernelspec has no profile {wanted:?}; it has: {known}"
        )));
    };
    let profile = Profile::deserialize(profile)
        .map_err(|error| ApiError::bad_request(format!("the kernelspec's profile {wanted:?} is malformed: {error}")))?;
    debug_assert_eq!(profile.name, wanted);
    for (name, variable) in VARIABLES {
        match profile.resources.get(name) {
            Some(Value::String(value)) => drop(env.insert(variable.to_owned(), value.clone())),
            Some(Value::Number(value)) => drop(env.insert(variable.to_owned(), value.to_string())),
            _ => {}
        }
    }
    if let Some(name) = profile.env.keys().find(|name| NOT_SET.contains(&name.as_str())) {
        return Err(ApiError::bad_request(format!(
            "the kernelspec's profile {wanted:?} may not set {name}, which only the request can set"
        )));
    }
    env.extend(profile.env);
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let variables = variables.iter();
        variables
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_profile_sets_resources_and_variables() {
        let metadata = json!({"kernelmux": {"profiles": [
            {"name": "CPU"},
            {"name": "GPU", "resources": {"gpu": 1, "memory": "64Gi"}, "env": {"KERNEL_IMAGE": "cuda"}},
            {"name": "broken", "env": 7},
        ]}});
        let Value::Object(metadata) = metadata else {
            unreachable!()
        };
        let spec = Kernelspec {
            metadata,
            ..Kernelspec::default()
        };
        let mut chosen = env(&[(VARIABLE, "GPU"), ("KERNEL_GPUS", "8"), ("KERNEL_X", "y")]);
        apply(&spec, &mut chosen).unwrap();
        let expected = [
            (VARIABLE, "GPU"),
            ("KERNEL_GPUS", "1"),
            ("KERNEL_IMAGE", "cuda"),
            ("KERNEL_MEMORY", "64Gi"),
            ("KERNEL_X", "y"),
        ];
        assert_eq!(chosen, env(&expected));
        let resources = Resources::of(&chosen).unwrap();
        assert_eq!(
            serde_json::to_value(resources).unwrap(),
            json!({"memory": "64Gi", "gpu": "1"})
        );

        let mut none = env(&[("KERNEL_X", "y")]);
        apply(&spec, &mut none).unwrap();
        assert_eq!(Resources::of(&none), None);
        for name in ["gpu", "broken"] {
            let error = apply(&spec, &mut env(&[(VARIABLE, name)])).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        }
        assert!(apply(&Kernelspec::default(), &mut env(&[(VARIABLE, "GPU")])).is_err());
    }
}
