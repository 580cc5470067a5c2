//! The Kubernetes objects of a kernel: its pod, and the Secret with its connection file and environment.

mod agent;
mod container;
mod pod_spec;

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{ConnectionInfo, InstalledKernelspec, KernelId, Key};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kernel_provider::agent::Launch;
use sha2::{Digest as _, Sha256};

pub(crate) use agent::AgentParams;
use container::restarts_in_place;
use pod_spec::pod_spec;

use crate::names;
use crate::settings::Settings;

/// The kernel's ports: shell, iopub, stdin, control and heartbeat. Each pod has its own network, so all pods use the
/// same ports.
const PORTS: [u16; 5] = [9301, 9302, 9303, 9304, 9305];

/// A pod to create, and the data of its Secret.
#[derive(Clone)]
pub(crate) struct Manifest {
    pub(crate) pod: Pod,
    pub(crate) secret: BTreeMap<String, ByteString>,
}

/// Parameters of [`Manifest::new`].
pub(crate) struct ManifestParams<'a> {
    pub(crate) id: KernelId,
    pub(crate) provider: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) owner: Option<&'a str>,
    pub(crate) installed: &'a InstalledKernelspec,
    pub(crate) settings: Settings,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) launched: DateTime<Utc>,
    /// Whether the pod is for a warm pool. If so, the launch that will claim it is not known yet.
    pub(crate) is_warm: bool,
    /// `None` starts the kernel without an agent.
    pub(crate) agent: Option<AgentParams<'a>>,
}

/// The connection file of a kernel in a pod.
pub(crate) fn connection(spec_name: &str, env: &BTreeMap<String, String>) -> ConnectionInfo {
    let [shell_port, iopub_port, stdin_port, control_port, hb_port] = PORTS;
    ConnectionInfo {
        ip: "0.0.0.0".to_owned(),
        shell_port,
        iopub_port,
        stdin_port,
        control_port,
        hb_port,
        key: Key::random(),
        kernel_name: spec_name.to_owned(),
        jupyter_session: env.get("JPY_SESSION_NAME").cloned(),
        ..ConnectionInfo::default()
    }
}

/// Returns a random token that is valid in object names.
pub(crate) fn random_token() -> String {
    let random = KernelId::random().as_uuid().simple().to_string();
    random.chars().take(12).collect()
}

impl Manifest {
    /// Builds the pod and the Secret's data.
    ///
    /// # Errors
    /// The reason why the kernelspec or the environment is invalid.
    pub(crate) fn new(kernel: ManifestParams<'_>) -> Result<Self, String> {
        let ManifestParams { installed, env, .. } = &kernel;
        let (key, file) = match &kernel.agent {
            Some(agent) => (names::LAUNCH_KEY, agent::launch(&kernel, agent)?),
            None => {
                let connection = connection(&installed.name, env);
                let file = serde_json::to_vec(&connection).map_err(|error| error.to_string())?;
                (names::CONNECTION_KEY, file)
            }
        };
        let mut secret = BTreeMap::from([(key.to_owned(), ByteString(file))]);
        for (name, value) in *env {
            check_variable(name)?;
            secret.insert(
                format!("{}{name}", names::ENV_PREFIX),
                ByteString(value.clone().into_bytes()),
            );
        }
        let attempt = random_token();
        let secret_name = names::secret(&names::pod(kernel.id), &attempt);
        let spec = pod_spec(&kernel, &secret_name)?;
        let is_kept = restarts_in_place(&kernel)?;
        let template = kernel.settings.pod_template.metadata.unwrap_or_default();
        let mut labels = template.labels.unwrap_or_default();
        labels.extend(
            [
                (names::MANAGED_BY, names::MANAGER_NAME.to_owned()),
                (names::PROVIDER, kernel.provider.to_owned()),
                (names::KERNEL_ID, kernel.id.to_string()),
                // Labels that Enterprise Gateway sets and tools rely on.
                ("component", "kernel".to_owned()),
                (names::EG_KERNEL_ID, kernel.id.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let interrupt = match kernel.installed.spec.interrupt_mode {
            InterruptMode::Message => "message",
            _ => "signal",
        };
        let mut annotations = template.annotations.unwrap_or_default();
        annotations.extend(
            [
                (names::SPEC, kernel.installed.name.clone()),
                (
                    names::LAUNCHED,
                    kernel.launched.to_rfc3339_opts(SecondsFormat::Micros, true),
                ),
                (names::INTERRUPT, interrupt.to_owned()),
                (names::ATTEMPT, attempt),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        if let Some(owner) = kernel.owner {
            annotations.insert(names::OWNER.to_owned(), owner.to_owned());
        }
        if is_kept {
            annotations.insert(names::RESTART.to_owned(), names::IN_PLACE.to_owned());
        }
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(names::pod(kernel.id)),
                namespace: Some(kernel.namespace.to_owned()),
                labels: Some(labels),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        };
        Ok(Self { pod, secret })
    }

    /// Sets an annotation of the pod.
    pub(crate) fn annotate(&mut self, name: &str, value: String) {
        let annotations = self.pod.metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), value);
    }

    /// Puts the pod into a warm pool.
    pub(crate) fn add_to_pool(&mut self, pool: &str) {
        let labels = self.pod.metadata.labels.get_or_insert_default();
        labels.insert(names::POOL.to_owned(), pool.to_owned());
    }

    /// Stable hash of the kernelspec, settings and environment, usable as a label value.
    ///
    /// It ignores object names, keys, tokens, the owner, the request's annotations and the launch time, so equal pods
    /// have equal fingerprints.
    pub(crate) fn fingerprint(&self) -> String {
        let mut pod = self.pod.clone();
        pod.metadata.name = None;
        let labels = pod.metadata.labels.get_or_insert_default();
        for name in [names::KERNEL_ID, names::EG_KERNEL_ID] {
            labels.remove(name);
        }
        let annotations = pod.metadata.annotations.get_or_insert_default();
        let attempt = annotations.remove(names::ATTEMPT).unwrap_or_default();
        for name in [
            names::LAUNCHED,
            names::OWNER,
            names::REQUESTED,
            names::SETTINGS,
            names::WORKING_DIR,
        ] {
            annotations.remove(name);
        }
        let secret_name = names::secret(names::name(&self.pod), &attempt);
        // Serializing a pod cannot fail.
        let text = serde_json::to_string(&pod)
            .unwrap_or_default()
            .replace(&secret_name, "");
        let mut hash = Sha256::new();
        hash.update(text);
        let is_random = |name: &str| matches!(name, names::CONNECTION_KEY | names::LAUNCH_KEY);
        for (name, value) in self.secret.iter().filter(|(name, _)| !is_random(name)) {
            hash.update(name);
            hash.update(&value.0);
        }
        // An agent's launch contains keys, too, so only its kernelspec counts.
        let launch = self.secret.get(names::LAUNCH_KEY);
        if let Some(launch) = launch.and_then(|launch| serde_json::from_slice::<Launch>(&launch.0).ok()) {
            // Serializing a kernelspec cannot fail.
            hash.update(serde_json::to_string(&launch.spec).unwrap_or_default());
        }
        hash.finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Builds the manifest of a new pod for the same kernel, with the same keys.
    pub(crate) fn recreate(id: KernelId, pod: &Pod, secret: &BTreeMap<String, ByteString>) -> Self {
        let attempt = random_token();
        let name = names::secret(&names::pod(id), &attempt);
        let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
        annotations.insert(names::ATTEMPT.to_owned(), attempt);
        let mut spec = pod.spec.clone().unwrap_or_default();
        // The cluster set these on the old pod and sets them again on the new one.
        spec.node_name = None;
        annotations.retain(|name, _| !is_network_annotation(name));
        // `kubectl debug` adds these; a pod cannot be created with them.
        spec.ephemeral_containers = None;
        for volume in spec
            .volumes
            .iter_mut()
            .flatten()
            .filter(|volume| volume.name == names::VOLUME)
        {
            if let Some(source) = &mut volume.secret {
                source.secret_name = Some(name.clone());
            }
        }
        let containers = spec
            .containers
            .iter_mut()
            .filter(|container| container.name == names::CONTAINER);
        for variable in containers.filter_map(|container| container.env.as_mut()).flatten() {
            let source = variable
                .value_from
                .as_mut()
                .and_then(|from| from.secret_key_ref.as_mut());
            if let Some(source) = source.filter(|source| source.key.starts_with(names::ENV_PREFIX)) {
                source.name.clone_from(&name);
            }
        }
        let metadata = ObjectMeta {
            // The old pod has another name if it was claimed from a pool.
            name: Some(names::pod(id)),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        };
        let pod = Pod {
            metadata,
            spec: Some(spec),
            status: None,
        };
        Self {
            pod,
            secret: secret.clone(),
        }
    }

    /// Builds the Secret, owned by the created pod.
    pub(crate) fn secret(&self, made: &Pod) -> Secret {
        let attempt = names::annotation(&self.pod, names::ATTEMPT).unwrap_or_default();
        Secret {
            metadata: ObjectMeta {
                name: Some(names::secret(names::name(&self.pod), attempt)),
                namespace: made.metadata.namespace.clone(),
                labels: made.metadata.labels.clone(),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: made.metadata.name.clone().unwrap_or_default(),
                    uid: names::uid(made).to_owned(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            immutable: Some(true),
            data: Some(self.secret.clone()),
            ..Secret::default()
        }
    }
}

/// Whether a network plug-in adds this annotation to running pods, for example with the pod's address.
fn is_network_annotation(annotation: &str) -> bool {
    const NOTES: &[&str] = &[
        "cni.projectcalico.org/containerID",
        "cni.projectcalico.org/podIP",
        "cni.projectcalico.org/podIPs",
        "k8s.ovn.org/pod-networks",
        "k8s.v1.cni.cncf.io/network-status",
        "k8s.v1.cni.cncf.io/networks-status",
    ];
    NOTES.contains(&annotation)
}

fn check_variable(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 200 || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} cannot be an environment variable of a pod: use 1 to 200 letters, digits, '_', '-' and '.'"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::container::KEEP_SCRIPT;
    use super::*;

    fn manifest(kubernetes: Value) -> Result<Manifest, String> {
        manifest_with(kubernetes, None)
    }

    fn manifest_with(kubernetes: Value, agent: Option<AgentParams<'_>>) -> Result<Manifest, String> {
        let spec = serde_json::from_value(json!({
            "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "env": {"GREETING": "for ${KERNEL_USERNAME}"},
            "metadata": {"kernelmux": {"kubernetes": kubernetes}},
        }))
        .unwrap();
        let installed = InstalledKernelspec {
            name: "python3".to_owned(),
            spec,
            resource_dir: PathBuf::from("/nowhere"),
        };
        let settings = Settings::from_spec(&installed.spec, None)?.unwrap();
        Manifest::new(ManifestParams {
            id: KernelId::random(),
            provider: "k8s",
            namespace: "kernels",
            owner: Some("Ann Ö"),
            installed: &installed,
            settings,
            env: &BTreeMap::from([
                ("KERNEL_USERNAME".to_owned(), "ann".to_owned()),
                ("TOKEN".to_owned(), "a-secret-value".to_owned()),
            ]),
            launched: DateTime::UNIX_EPOCH,
            is_warm: true,
            agent,
        })
    }

    #[test]
    fn fingerprints_depend_on_settings_only() {
        let of = |kubernetes: Value| manifest(kubernetes).unwrap().fingerprint();
        let one = of(json!({"image": "x"}));
        assert_eq!(one, of(json!({"image": "x"})));
        assert_ne!(one, of(json!({"image": "y"})));
        assert_ne!(one, of(json!({"image": "x", "gpus": 1})));
        // Label values have at most 63 characters.
        assert!(one.len() == 32 && one.chars().all(|c| c.is_ascii_hexdigit()), "{one}");
    }

    #[test]
    fn the_pod_contains_no_secrets() {
        let manifest = manifest(json!({"image": "x"})).unwrap();
        let text = serde_json::to_string(&manifest.pod).unwrap();
        let file = &manifest.secret[names::CONNECTION_KEY].0;
        let connection: ConnectionInfo = serde_json::from_slice(file).unwrap();
        assert!(
            !text.contains("a-secret-value") && !text.contains(connection.key.expose()),
            "{text}"
        );
        assert_eq!(manifest.secret["env.TOKEN"].0, b"a-secret-value");
        assert!(text.contains("for ann"), "{text}");
        let container = &manifest.pod.spec.unwrap().containers[0];
        let command = container.command.as_ref().unwrap();
        // The command ends with the kernelspec's argv.
        assert_eq!(command.last().unwrap(), names::COPY_FILE);
        assert_eq!(command[11], "python3");
        // Kubernetes replaces each `$$` with `$`.
        let script = command[2].replace("$$", "\0");
        assert!(!script.contains('$') && script.replace('\0', "$") == KEEP_SCRIPT);
    }

    const AGENT: AgentParams<'_> = AgentParams {
        image: "agent",
        spool_bytes: 1 << 20,
        orphan_timeout: None,
    };

    #[test]
    fn a_pod_with_an_agent_contains_no_secrets() {
        let limits = json!({"limits": {"cpu": "1", "nvidia.com/gpu": "1"}});
        let manifest = manifest_with(json!({"image": "x", "resources": limits}), Some(AGENT)).unwrap();
        let text = serde_json::to_string(&manifest.pod).unwrap();
        let launch: Launch = serde_json::from_slice(&manifest.secret[names::LAUNCH_KEY].0).unwrap();
        assert!(
            !text.contains("a-secret-value") && !text.contains(&launch.token),
            "{text}"
        );
        assert!(text.contains("for ann") && launch.spec.env.is_empty(), "{text}");
        // The command is that of the kernelspec.
        assert_eq!(
            launch.spec.argv,
            ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        );
        assert!(!manifest.secret.contains_key(names::CONNECTION_KEY));
        let spec = manifest.pod.spec.unwrap();
        let init = &spec.init_containers.unwrap()[0];
        assert_eq!(init.image.as_deref(), Some("agent"));
        let limits = init.resources.as_ref().unwrap().limits.as_ref().unwrap();
        assert_eq!(limits.keys().collect::<Vec<_>>(), ["cpu"]);
        assert_eq!(spec.share_process_namespace, Some(false));
        assert_eq!(
            spec.containers[0].command.as_ref().unwrap()[0],
            "/kernelmux/kernelmux-agent"
        );
    }

    #[test]
    fn fingerprints_do_not_depend_on_keys_of_agents() {
        let of = |agent| manifest_with(json!({"image": "x"}), Some(agent)).unwrap().fingerprint();
        assert_eq!(of(AGENT), of(AGENT));
        assert_ne!(
            of(AGENT),
            of(AgentParams {
                image: "other",
                ..AGENT
            })
        );
        assert_ne!(of(AGENT), manifest(json!({"image": "x"})).unwrap().fingerprint());
    }

    #[test]
    fn fingerprints_depend_on_the_command_that_an_agent_runs() {
        let mut manifest = manifest_with(json!({"image": "x"}), Some(AGENT)).unwrap();
        let before = manifest.fingerprint();
        let launch = manifest.secret.get_mut(names::LAUNCH_KEY).unwrap();
        let mut changed: Launch = serde_json::from_slice(&launch.0).unwrap();
        changed.spec.argv.push("--debug".to_owned());
        launch.0 = serde_json::to_vec(&changed).unwrap();
        assert_ne!(manifest.fingerprint(), before);
    }

    #[test]
    fn the_pod_template_is_merged() {
        let manifest = manifest(json!({
            "image": "x",
            "volume_mounts": [{"name": "home", "mountPath": "/home"}],
            "pod_template": {"spec": {
                "containers": [
                    {"name": "sidecar", "image": "y"},
                    {"name": "kernel", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "1"}}},
                ],
                "securityContext": {"runAsUser": 7},
                "volumes": [{"name": "home", "emptyDir": {}}],
            }},
        }))
        .unwrap();
        let spec = manifest.pod.spec.unwrap();
        let names: Vec<_> = spec
            .containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        assert_eq!(names, ["kernel", "sidecar"]);
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "A");
        let context = spec.security_context.unwrap();
        assert_eq!((context.run_as_user, context.run_as_group), (Some(7), Some(100)));
        assert_eq!(spec.volumes.unwrap().len(), 3);
    }

    #[test]
    fn templates_cannot_set_fields_that_the_provider_controls() {
        for spec in [
            json!({"containers": [{"name": "kernel", "command": ["sh"]}]}),
            json!({"containers": [], "restartPolicy": "Always"}),
            json!({"containers": [], "hostNetwork": true}),
            json!({"containers": [], "volumes": [{"name": "kernelmux-connection", "emptyDir": {}}]}),
            json!({"containers": [], "initContainers": [{"name": "kernelmux-agent"}]}),
        ] {
            let refused = manifest(json!({"image": "x", "pod_template": {"spec": spec}}))
                .err()
                .unwrap();
            assert!(refused.contains("the provider controls"), "{refused}");
        }
    }

    #[test]
    fn a_recreated_pod_has_a_new_secret_with_the_same_data() {
        let mut first = manifest(json!({"image": "x"})).unwrap();
        // Fields that other components added while the pod ran.
        first.annotate("cni.projectcalico.org/podIP", "10.0.0.7/32".to_owned());
        let added = json!([{"name": "debugger", "image": "busybox"}]);
        first.pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(added).unwrap();
        let id = names::kernel_id(&first.pod).unwrap();
        let second = Manifest::recreate(id, &first.pod, &first.secret);
        let name = |manifest: &Manifest| manifest.secret(&manifest.pod).metadata.name.unwrap();
        assert_ne!(name(&first), name(&second));
        assert!(first.secret == second.secret);
        let text = serde_json::to_string(&second.pod).unwrap();
        assert!(text.contains(&name(&second)) && !text.contains(&name(&first)), "{text}");
        assert!(!text.contains("debugger") && !text.contains("10.0.0.7"), "{text}");
    }
}
