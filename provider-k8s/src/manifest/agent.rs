//! The agent in a kernel's pod: the init container that installs its program, and its launch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, ResourceRequirements, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kernel_provider::agent::{Launch, Listen, TlsIdentity};
use uuid::Uuid;

use super::ManifestParams;
use crate::{names, settings};

/// The port of agents. Each pod has its own network, so it is the same in all pods.
const PORT: u16 = 9300;
/// How long the agent waits for the kernel's start. It is long because the provider removes the pod at the launch's own
/// deadline.
const START_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How long an agent waits for a restart of a kernel that has ended by itself, before the pod ends too.
const LINGER: Duration = Duration::from_secs(60);
/// Room in the agent's volume for the program, and for entries of the agent's log beyond `spool_bytes`.
const VOLUME_SLACK: u64 = 512 << 20;

/// Parameters of the agent in a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgentParams<'a> {
    /// The image with the program `kernelmux-agent`.
    pub(crate) image: &'a str,
    pub(crate) spool_bytes: u64,
    pub(crate) orphan_timeout: Option<Duration>,
}

/// Returns the agent's launch as JSON, with a new token and certificate.
///
/// # Errors
/// The reason why the kernelspec is invalid, or no certificate can be created.
pub(super) fn launch(kernel: &ManifestParams<'_>, agent: &AgentParams<'_>) -> Result<Vec<u8>, String> {
    let installed = kernel.installed;
    let mut spec = installed.spec.clone();
    spec.argv = settings::argv(&spec)?;
    // The container has the kernelspec's variables already.
    spec.env.clear();
    let session = kernel.env.get_key_value(JPY_SESSION_NAME);
    let launch = Launch {
        id: kernel.id,
        spec_name: installed.name.clone(),
        // The image's interpreter, not this machine's.
        python: spec.argv.first().map(PathBuf::from),
        spec,
        resource_dir: installed.resource_dir.clone(),
        // Only the variable that goes into the connection file. The container has the others already.
        env: session
            .map(|(name, value)| (name.clone(), value.clone()))
            .into_iter()
            .collect(),
        inherit_over_kernelspec: Default::default(),
        inherit_all: true,
        working_dir: None,
        timeout: START_TIMEOUT,
        dir: PathBuf::from(names::AGENT_DIR).join("state"),
        socket_dir: PathBuf::from(names::AGENT_DIR).join("s"),
        listen: Listen::Tls {
            port: PORT,
            identity: TlsIdentity::generate().map_err(|error| format!("no certificate can be created: {error}"))?,
        },
        token: format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
        transport: None,
        ports: None,
        command_prefix: Vec::new(),
        spool_bytes: agent.spool_bytes,
        orphan_timeout: agent.orphan_timeout,
        linger: Some(LINGER),
    };
    serde_json::to_vec(&launch).map_err(|error| error.to_string())
}

const JPY_SESSION_NAME: &str = "JPY_SESSION_NAME";

/// The command of the kernel's container.
pub(super) fn command() -> Vec<String> {
    let program = format!("{}/{}", names::AGENT_DIR, names::AGENT);
    [&program, "run", "--launch", names::LAUNCH_FILE]
        .map(str::to_owned)
        .into()
}

pub(super) fn mount() -> VolumeMount {
    VolumeMount {
        name: names::AGENT.to_owned(),
        mount_path: names::AGENT_DIR.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn volume(agent: &AgentParams<'_>) -> Volume {
    let limit = agent.spool_bytes.saturating_add(VOLUME_SLACK);
    #[allow(clippy::needless_update, reason = "newer versions of Kubernetes have more fields")]
    Volume {
        name: names::AGENT.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(limit.to_string())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The container that copies the agent's program into the volume, before the kernel's container starts.
pub(super) fn init_container(agent: &AgentParams<'_>, kernel: &Container) -> Container {
    Container {
        name: names::AGENT.to_owned(),
        image: Some(agent.image.to_owned()),
        command: Some([names::AGENT, "install", names::AGENT_DIR].map(str::to_owned).into()),
        // A quota may require these. They do not add to the pod's total, because the init container ends before the
        // kernel's container starts.
        resources: kernel.resources.as_ref().map(basic_resources),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![mount()]),
        ..Container::default()
    }
}

/// CPU, memory and ephemeral storage only: the init container needs no GPU.
fn basic_resources(resources: &ResourceRequirements) -> ResourceRequirements {
    let basic = |all: &Option<BTreeMap<String, Quantity>>| {
        let all = all.iter().flatten();
        let basic = all.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage"));
        Some(basic.map(|(name, amount)| (name.clone(), amount.clone())).collect())
    };
    ResourceRequirements {
        limits: basic(&resources.limits),
        requests: basic(&resources.requests),
        ..ResourceRequirements::default()
    }
}
