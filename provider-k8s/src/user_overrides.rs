//! Settings that users override with `KERNEL_*` variables, parsed and checked against the operator's policy.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::de::DeserializeOwned;

use crate::policy::Policy;
use crate::settings::Settings;

/// A kind of setting that users can override if the [`Policy`] allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Input {
    /// `KERNEL_CPUS`, `KERNEL_CPUS_LIMIT`.
    Cpus,
    /// `KERNEL_MEMORY`, `KERNEL_MEMORY_LIMIT`.
    Memory,
    /// `KERNEL_GPUS`, `KERNEL_GPUS_LIMIT`.
    Gpus,
    /// `KERNEL_WORKING_DIR`, and the working directory of the launch request.
    WorkingDir,
    /// `KERNEL_IMAGE`.
    Image,
    /// `KERNEL_UID`, `KERNEL_GID`.
    UserId,
    /// `KERNEL_SERVICE_ACCOUNT_NAME`.
    ServiceAccount,
    /// `KERNEL_VOLUMES`, `KERNEL_VOLUME_MOUNTS`.
    Volumes,
}

impl Input {
    /// All kinds of settings.
    pub const ALL: [Self; 8] = [
        Self::Cpus,
        Self::Memory,
        Self::Gpus,
        Self::WorkingDir,
        Self::Image,
        Self::UserId,
        Self::ServiceAccount,
        Self::Volumes,
    ];
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpus => "CPUs",
            Self::Memory => "memory",
            Self::Gpus => "GPUs",
            Self::WorkingDir => "the working directory",
            Self::Image => "the image",
            Self::UserId => "the user and group id",
            Self::ServiceAccount => "the service account",
            Self::Volumes => "volumes",
        })
    }
}

/// The variable for the working directory.
pub(crate) const WORKING_DIR: &str = "KERNEL_WORKING_DIR";

/// Variables that override settings. All other variables only go into the kernel's environment.
const VARIABLES: &[(&str, Input)] = &[
    ("KERNEL_CPUS", Input::Cpus),
    ("KERNEL_CPUS_LIMIT", Input::Cpus),
    ("KERNEL_MEMORY", Input::Memory),
    ("KERNEL_MEMORY_LIMIT", Input::Memory),
    ("KERNEL_GPUS", Input::Gpus),
    ("KERNEL_GPUS_LIMIT", Input::Gpus),
    ("KERNEL_WORKING_DIR", Input::WorkingDir),
    ("KERNEL_IMAGE", Input::Image),
    ("KERNEL_UID", Input::UserId),
    ("KERNEL_GID", Input::UserId),
    ("KERNEL_SERVICE_ACCOUNT_NAME", Input::ServiceAccount),
    ("KERNEL_VOLUMES", Input::Volumes),
    ("KERNEL_VOLUME_MOUNTS", Input::Volumes),
];
/// Variables of Enterprise Gateway that are refused, with the reason.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("KERNEL_NAMESPACE", "all kernels run in one namespace"),
    ("KERNEL_POD_NAME", "pods are named after the kernel's id"),
];

/// Applies a user's overrides to the settings of a kernelspec. Empty variables are ignored.
///
/// # Errors
/// The reason why a variable is not allowed or is invalid, starting with the variable's name.
pub(crate) fn apply(settings: &mut Settings, env: &BTreeMap<String, String>, policy: &Policy) -> Result<(), String> {
    for (name, value) in env.iter().filter(|(_, value)| !value.trim().is_empty()) {
        if let Some((_, why)) = UNSUPPORTED.iter().find(|(refused, _)| refused == name) {
            return Err(format!("{name} cannot be set: {why}"));
        }
        let Some((_, input)) = VARIABLES.iter().find(|(known, _)| known == name) else {
            continue;
        };
        if !policy.inputs.contains(input) {
            return Err(format!(
                "{name} cannot be set: the operator's policy does not let users choose {input}"
            ));
        }
        apply_one(settings, name, value.trim(), policy).map_err(|what| format!("{name} cannot be set: {what}"))?;
    }
    Ok(())
}

/// Whether a pod can use this working directory.
///
/// JupyterLab's server sends its own working directory with each launch, from another machine and possibly another
/// operating system. So a directory that the policy does not allow, or that is not an absolute Unix path, is ignored
/// without an error.
pub(crate) fn allows_working_dir(dir: &str, policy: &Policy) -> bool {
    let takes = policy.inputs.contains(&Input::WorkingDir) && absolute(dir).is_ok();
    if !takes {
        tracing::debug!(dir, "ignoring the client's working directory");
    }
    takes
}

fn apply_one(settings: &mut Settings, name: &str, value: &str, policy: &Policy) -> Result<(), String> {
    let gpu = settings.gpu_resource.clone();
    match name {
        "KERNEL_CPUS" => settings.request("cpu", quantity(value)?),
        "KERNEL_CPUS_LIMIT" => settings.limit("cpu", quantity(value)?),
        "KERNEL_MEMORY" => settings.request("memory", quantity(value)?),
        "KERNEL_MEMORY_LIMIT" => settings.limit("memory", quantity(value)?),
        // Kubernetes requires a GPU request to equal the limit.
        "KERNEL_GPUS" | "KERNEL_GPUS_LIMIT" => {
            let count: u32 = value
                .parse()
                .map_err(|_| format!("{value:?} is not a number of GPUs"))?;
            settings.limit(&gpu, Quantity(count.to_string()));
        }
        "KERNEL_WORKING_DIR" => settings.working_dir = Some(absolute(value)?),
        "KERNEL_IMAGE" if policy.allows_image(value) => settings.image = Some(value.to_owned()),
        "KERNEL_IMAGE" => return Err(format!("the operator's policy does not allow the image {value:?}")),
        "KERNEL_UID" => settings.run_as_user = id(value, policy)?,
        "KERNEL_GID" => settings.run_as_group = id(value, policy)?,
        "KERNEL_SERVICE_ACCOUNT_NAME" if policy.service_accounts.contains(value) => {
            settings.service_account = Some(value.to_owned());
        }
        "KERNEL_SERVICE_ACCOUNT_NAME" => {
            return Err(format!(
                "the operator's policy does not allow the service account {value:?}"
            ));
        }
        "KERNEL_VOLUMES" => {
            let volumes: Vec<Volume> = yaml(value)?;
            for volume in &volumes {
                check_volume(volume, policy)?;
            }
            settings.volumes.extend(volumes);
        }
        "KERNEL_VOLUME_MOUNTS" => settings.volume_mounts.extend(yaml::<Vec<VolumeMount>>(value)?),
        _ => {}
    }
    Ok(())
}

/// Parses a Kubernetes quantity, such as `500m`, `2` or `1.5Gi`.
fn quantity(value: &str) -> Result<Quantity, String> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &value[digits.len()..];
    let is_number = !digits.is_empty() && digits.parse::<f64>().is_ok_and(|number| number >= 0.0);
    let known = [
        "", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    if is_number && digits.starts_with(|c: char| c.is_ascii_digit()) && known.contains(&suffix) {
        Ok(Quantity(value.to_owned()))
    } else {
        Err(format!("{value:?} is not a quantity such as 500m, 2 or 1.5Gi"))
    }
}

fn absolute(value: &str) -> Result<String, String> {
    if value.starts_with('/') {
        Ok(value.to_owned())
    } else {
        Err(format!("{value:?} is not an absolute path"))
    }
}

fn id(value: &str, policy: &Policy) -> Result<Option<i64>, String> {
    let id: u32 = value.parse().map_err(|_| format!("{value:?} is not an id"))?;
    if policy.forbidden_ids.contains(&i64::from(id)) {
        return Err(format!("the operator's policy forbids the id {id}"));
    }
    Ok(Some(i64::from(id)))
}

/// Parses a YAML list. YAML includes JSON, and also the single quotes that Enterprise Gateway's users often write.
pub(crate) fn yaml<T: DeserializeOwned>(value: &str) -> Result<T, String> {
    serde_saphyr::from_str(value).map_err(|error| {
        let text = error.to_string();
        format!(
            "it is not a valid YAML list: {}",
            text.lines().next().unwrap_or_default()
        )
    })
}

fn check_volume(volume: &Volume, policy: &Policy) -> Result<(), String> {
    let mut claim_only = Volume {
        name: volume.name.clone(),
        ..Volume::default()
    };
    claim_only
        .persistent_volume_claim
        .clone_from(&volume.persistent_volume_claim);
    if let Some(claim) = &volume.persistent_volume_claim
        && policy.forbidden_claims.contains(&claim.claim_name)
    {
        return Err(format!(
            "the operator's policy forbids the volume {:?}",
            claim.claim_name
        ));
    }
    if volume.persistent_volume_claim.is_none() || claim_only != *volume {
        if policy.any_volume {
            return Ok(());
        }
        return Err(format!(
            "the volume {:?} is not a persistentVolumeClaim, and the operator's policy allows no other kind",
            volume.name
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)], policy: &Policy) -> Result<Settings, String> {
        let env = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut settings = Settings::default();
        apply(&mut settings, &env, policy).map(|()| settings)
    }

    #[test]
    fn allowed_variables_are_applied() {
        let mut policy = Policy::permissive();
        policy.service_accounts.insert("spark".to_owned());
        let settings = with(
            &[
                ("KERNEL_CPUS", "500m"),
                ("KERNEL_CPUS_LIMIT", "2"),
                ("KERNEL_MEMORY", "1.5Gi"),
                ("KERNEL_GPUS", "1"),
                ("KERNEL_IMAGE", "example/kernel:1"),
                ("KERNEL_UID", "1001"),
                ("KERNEL_SERVICE_ACCOUNT_NAME", "spark"),
                ("KERNEL_WORKING_DIR", "/data"),
                (
                    "KERNEL_VOLUMES",
                    "[{name: 'home', persistentVolumeClaim: {claimName: 'ann'}}]",
                ),
                ("KERNEL_VOLUME_MOUNTS", "[{'name': 'home', 'mountPath': '/data'}]"),
                ("KERNEL_USERNAME", "ann"),
                ("OTHER", "x"),
            ],
            &policy,
        )
        .unwrap();
        let requests = settings.resources.requests.unwrap();
        let limits = settings.resources.limits.unwrap();
        assert_eq!(requests["cpu"].0, "500m");
        assert_eq!(requests["memory"].0, "1.5Gi");
        assert_eq!(limits["cpu"].0, "2");
        assert_eq!(limits["nvidia.com/gpu"].0, "1");
        assert_eq!(settings.image.as_deref(), Some("example/kernel:1"));
        assert_eq!(settings.run_as_user, Some(1001));
        assert_eq!(
            settings.volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name,
            "ann"
        );
        assert_eq!(settings.volume_mounts[0].mount_path, "/data");
    }

    #[test]
    fn forbidden_and_invalid_variables_are_refused_by_name() {
        let permissive = Policy::permissive();
        let default = Policy::default();
        let mut guarded = Policy::permissive();
        guarded.forbidden_claims.insert("log".to_owned());
        for (name, value, policy) in [
            ("KERNEL_IMAGE", "a", &default),
            ("KERNEL_VOLUMES", "[]", &default),
            ("KERNEL_CPUS", "many", &permissive),
            ("KERNEL_CPUS", "-1", &permissive),
            ("KERNEL_MEMORY", "1GB", &permissive),
            ("KERNEL_GPUS", "1.5", &permissive),
            ("KERNEL_UID", "0", &permissive),
            ("KERNEL_UID", "root", &permissive),
            ("KERNEL_WORKING_DIR", "data", &permissive),
            ("KERNEL_NAMESPACE", "kube-system", &permissive),
            ("KERNEL_SERVICE_ACCOUNT_NAME", "admin", &permissive),
            ("KERNEL_VOLUMES", "[{name: x, hostPath: {path: /}}]", &permissive),
            ("KERNEL_VOLUMES", "[{name: x, secret: {secretName: y}}]", &permissive),
            ("KERNEL_VOLUMES", "}{", &permissive),
            (
                "KERNEL_VOLUMES",
                "[{name: x, persistentVolumeClaim: {claimName: log}}]",
                &guarded,
            ),
        ] {
            let refused = with(&[(name, value)], policy).unwrap_err();
            assert!(refused.starts_with(name) && !refused.contains('\n'), "{refused}");
        }
        // An empty variable counts as unset.
        assert!(with(&[("KERNEL_IMAGE", " ")], &default).is_ok());
    }
}
