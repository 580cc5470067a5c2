//! Pod settings in kernelspecs.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use jupyter_protocol::Kernelspec;
use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements, Toleration, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kernel_provider::own_metadata;
use serde::Deserialize;
use serde_json::Value;

/// `metadata.kernelmux.kubernetes` of a `kernel.json`. Kubernetes objects are written as in manifests.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The image that contains the kernel.
    pub(crate) image: Option<String>,
    /// `Always`, `IfNotPresent` or `Never`. `None` uses Kubernetes' default.
    pub(crate) image_pull_policy: Option<String>,
    /// Names of the Secrets for pulling the image.
    pub(crate) image_pull_secrets: Vec<String>,
    /// Requests and limits for CPU, memory and other resources: `{"requests": {…}, "limits": {…}}`.
    pub(crate) resources: ResourceRequirements,
    /// Number of GPUs.
    pub(crate) gpus: Option<u32>,
    /// Kubernetes' resource name for GPUs.
    pub(crate) gpu_resource: String,
    /// Volumes in addition to the operator's.
    pub(crate) volumes: Vec<Volume>,
    /// Where volumes are mounted in the kernel's container.
    pub(crate) volume_mounts: Vec<VolumeMount>,
    /// Labels that the node must have.
    pub(crate) node_selector: BTreeMap<String, String>,
    /// Node taints that the pod tolerates.
    pub(crate) tolerations: Vec<Toleration>,
    /// The service account. Its token is not mounted.
    pub(crate) service_account: Option<String>,
    /// The directory that the kernel starts in. `None` uses the image's.
    pub(crate) working_dir: Option<String>,
    /// The user id that the kernel runs as.
    pub(crate) run_as_user: Option<i64>,
    /// The group id that the kernel runs as.
    pub(crate) run_as_group: Option<i64>,
    /// Whether the kernel gets a writable copy of the connection file. `None` means yes for kernels started by a Python
    /// interpreter.
    ///
    /// ipykernel before 6.29 writes to the connection file, and exits if it cannot. Copying needs `sh` and `cp` in the
    /// image. Not used for kernels with an agent.
    pub(crate) writable_connection_file: Option<bool>,
    /// Whether a restart keeps the pod. `None` means yes for kernels with an agent or started by a Python interpreter.
    ///
    /// Without an agent, this needs `sh`, `cat`, `mkfifo`, `mv` and `rm` in the image.
    pub(crate) restart_in_place: Option<bool>,
    /// Pods that are created ahead of launches, each with an idle kernel.
    pub(crate) warm_pool: WarmPool,
    /// Template for everything else in the pod. The settings above and the provider's own are merged into it.
    pub(crate) pod_template: PodTemplateSpec,
}

/// Size and limits of a warm pool.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WarmPool {
    /// Number of unclaimed pods; 0 means no pool.
    pub(crate) size: u32,
    /// Seconds after which an unclaimed pod is replaced.
    pub(crate) max_age: u64,
    /// Launch variables that are dropped so that a warm pod can be used; variables of a running pod cannot be changed.
    pub(crate) without: BTreeSet<String>,
}

impl Default for WarmPool {
    fn default() -> Self {
        Self {
            size: 0,
            max_age: 3600,
            without: BTreeSet::new(),
        }
    }
}

/// Variables that describe the launch and mean nothing to the kernel.
const LAUNCH_VARIABLES: [&str; 3] = ["KERNEL_GATEWAY", "KERNEL_ID", "KERNEL_LAUNCH_TIMEOUT"];

impl WarmPool {
    /// Whether this variable is dropped from a launch that uses the pool.
    pub(crate) fn ignores(&self, variable: &str) -> bool {
        LAUNCH_VARIABLES.contains(&variable) || self.without.contains(variable)
    }

    pub(crate) fn max_age(&self) -> TimeDelta {
        let seconds = i64::try_from(self.max_age).unwrap_or(i64::MAX);
        TimeDelta::try_seconds(seconds).unwrap_or(TimeDelta::MAX)
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// The setting that is out of range.
    fn check(&self) -> Result<(), String> {
        if self.size > 1000 {
            return Err(format!("warm_pool.size is {}, but the maximum is 1000", self.size));
        }
        if self.max_age == 0 {
            return Err("warm_pool.max_age is 0, but the minimum is 1 (seconds)".to_owned());
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            resources: ResourceRequirements::default(),
            gpus: None,
            gpu_resource: "nvidia.com/gpu".to_owned(),
            volumes: Vec::new(),
            volume_mounts: Vec::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            service_account: None,
            working_dir: None,
            // The ids used by Jupyter's and Enterprise Gateway's images.
            run_as_user: Some(1000),
            run_as_group: Some(100),
            writable_connection_file: None,
            restart_in_place: None,
            warm_pool: WarmPool::default(),
            pod_template: PodTemplateSpec::default(),
        }
    }
}

impl Settings {
    /// Reads a kernelspec's settings. Returns `None` if the kernelspec has none and there is no default image.
    ///
    /// # Errors
    /// The reason why the settings are invalid.
    pub(crate) fn from_spec(spec: &Kernelspec, default_image: Option<&str>) -> Result<Option<Self>, String> {
        let mut settings = match (own_metadata(spec, "kubernetes"), enterprise_gateway(spec)) {
            (Some(own), _) => serde_json::from_value::<Self>(own.clone())
                .map_err(|error| format!("metadata.kernelmux.kubernetes: {error}"))?,
            (None, Some(theirs)) => theirs?,
            (None, None) if default_image.is_some() => Self::default(),
            (None, None) => return Ok(None),
        };
        if settings.image.is_none() {
            settings.image = default_image.map(str::to_owned);
        }
        if settings.image.is_none() {
            return Err("metadata.kernelmux.kubernetes.image is missing".to_owned());
        }
        settings
            .warm_pool
            .check()
            .map_err(|error| format!("metadata.kernelmux.kubernetes: {error}"))?;
        if let Some(gpus) = settings.gpus {
            let resource = settings.gpu_resource.clone();
            settings.limit(&resource, Quantity(gpus.to_string()));
        }
        Ok(Some(settings))
    }

    /// Returns the names of the settings that differ, among the settings that a launch can set.
    pub(crate) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let fields = [
            ("the image", self.image != other.image),
            ("resources", self.resources != other.resources),
            (
                "volumes",
                self.volumes != other.volumes || self.volume_mounts != other.volume_mounts,
            ),
            ("the service account", self.service_account != other.service_account),
            ("the working directory", self.working_dir != other.working_dir),
            (
                "the user or group id",
                self.run_as_user != other.run_as_user || self.run_as_group != other.run_as_group,
            ),
        ];
        let differ = fields.into_iter().filter(|(_, differs)| *differs);
        differ.map(|(field, _)| field).collect()
    }

    pub(crate) fn request(&mut self, resource: &str, quantity: Quantity) {
        let requests = self.resources.requests.get_or_insert_default();
        requests.insert(resource.to_owned(), quantity);
    }

    pub(crate) fn limit(&mut self, resource: &str, quantity: Quantity) {
        let limits = self.resources.limits.get_or_insert_default();
        limits.insert(resource.to_owned(), quantity);
    }
}

/// Reads Enterprise Gateway's metadata: `metadata.process_proxy`, or else `metadata.kernel_provisioner`.
fn enterprise_gateway(spec: &Kernelspec) -> Option<Result<Settings, String>> {
    let named = |stanza: &str, class: &str| {
        let stanza = spec.metadata.get(stanza)?;
        let name = stanza.get(class)?.as_str()?;
        name.to_ascii_lowercase().contains("kubernetes").then_some(stanza)
    };
    let stanza = named("process_proxy", "class_name").or_else(|| named("kernel_provisioner", "provisioner_name"))?;
    let image = stanza.get("config").and_then(|config| config.get("image_name"));
    Some(match image.and_then(Value::as_str) {
        Some(image) => Ok(Settings {
            image: Some(image.to_owned()),
            ..Settings::default()
        }),
        None => Ok(Settings::default()),
    })
}

/// Returns the command that runs the kernel in its container, without the connection file's path filled in.
///
/// The `argv` of Enterprise Gateway's kernelspecs starts a launcher next to the gateway. It is replaced by the usual
/// command of the kernel in the image.
///
/// # Errors
/// The reason why the command is unknown.
pub(crate) fn argv(spec: &Kernelspec) -> Result<Vec<String>, String> {
    let is_launcher = |arg: &String| arg.contains("launch_kubernetes") || arg.contains("launch_custom_resource");
    if !spec.argv.iter().any(is_launcher) {
        return match spec.argv.is_empty() {
            true => Err("it has no argv".to_owned()),
            false => Ok(spec.argv.clone()),
        };
    }
    let command: &[&str] = match spec.language.to_ascii_lowercase().as_str() {
        "python" => &["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "r" => &["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"],
        other => {
            return Err(format!(
                "its argv starts Enterprise Gateway's launcher, and the command for kernels of the language {other:?} \
                 is unknown; put the kernel's own command into argv"
            ));
        }
    };
    Ok(command.iter().map(|word| (*word).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> Kernelspec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn kernelmux_metadata_is_read() {
        let spec = spec(json!({
            "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "metadata": {"kernelmux": {"kubernetes": {
                "image": "example/python:1",
                "resources": {"requests": {"memory": "1Gi"}},
                "gpus": 2,
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "pod_template": {"metadata": {"labels": {"team": "a"}}, "spec": {"priorityClassName": "low"}},
            }}},
        }));
        let settings = Settings::from_spec(&spec, None).unwrap().unwrap();
        assert_eq!(settings.image.as_deref(), Some("example/python:1"));
        assert_eq!(settings.resources.limits.unwrap()["nvidia.com/gpu"].0, "2");
        assert_eq!(
            settings.pod_template.spec.unwrap().priority_class_name.as_deref(),
            Some("low")
        );
        assert_eq!(settings.run_as_user, Some(1000));
    }

    #[test]
    fn invalid_kernelmux_metadata_is_refused() {
        for wrong in [
            json!({"imgae": "x"}),
            json!({"image": 1}),
            json!({}),
            json!([]),
            json!({"image": "x", "warm_pool": {"size": 1, "max_age": 0}}),
            json!({"image": "x", "warm_pool": {"size": -1}}),
            json!({"image": "x", "warm_pool": {"sise": 1}}),
        ] {
            let spec = spec(json!({"argv": ["x"], "metadata": {"kernelmux": {"kubernetes": wrong}}}));
            assert!(Settings::from_spec(&spec, None).is_err());
        }
    }

    #[test]
    fn enterprise_gateway_metadata_is_read() {
        let spec = spec(json!({
            "language": "python",
            "display_name": "Python on Kubernetes",
            "metadata": {
                "process_proxy": {
                    "class_name": "enterprise_gateway.services.processproxies.k8s.KubernetesProcessProxy",
                    "config": {"image_name": "elyra/kernel-py:3.2.3"},
                },
                "debugger": true,
            },
            "env": {},
            "argv": ["python", "/usr/local/share/jupyter/kernels/python_kubernetes/scripts/launch_kubernetes.py",
                     "--RemoteProcessProxy.kernel-id", "{kernel_id}"],
        }));
        let settings = Settings::from_spec(&spec, None).unwrap().unwrap();
        assert_eq!(settings.image.as_deref(), Some("elyra/kernel-py:3.2.3"));
        assert_eq!(argv(&spec).unwrap()[2], "ipykernel_launcher");
    }

    #[test]
    fn other_kernelspecs_are_skipped_without_a_default_image() {
        let spec = spec(json!({"argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}));
        assert_eq!(Settings::from_spec(&spec, None), Ok(None));
        let settings = Settings::from_spec(&spec, Some("example/all:1")).unwrap().unwrap();
        assert_eq!(settings.image.as_deref(), Some("example/all:1"));
        let distributed = serde_json::from_value(json!({
            "argv": ["x"], "metadata": {"process_proxy": {"class_name": "x.distributed.DistributedProcessProxy"}}
        }));
        assert_eq!(Settings::from_spec(&distributed.unwrap(), None), Ok(None));
    }
}
