use std::path::PathBuf;
use std::time::Duration;

use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::paths::PathEnv;
use k8s_openapi::api::core::v1::{Volume, VolumeMount};

use kernel_provider::ProviderError;

use crate::manifest::AgentParams;
use crate::policy::Policy;
use crate::settings::Settings;
use crate::user_overrides::yaml;

/// Options of a [`K8sProvider`](crate::K8sProvider).
///
/// ```
/// use provider_k8s::{K8sOptions, Reach};
///
/// let options = K8sOptions::new("notebooks").with_reach(Reach::PortForward);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct K8sOptions {
    /// The provider's name: the part before the slash in `k8s/python3`.
    ///
    /// It is also used as a label value, so it has at most 63 letters, digits, `-`, `_` and `.`. Providers with the
    /// same name in the same namespace see the same kernels.
    pub name: String,
    /// The namespace of the kernels' pods.
    pub namespace: String,
    /// Where to search for kernelspecs. Kernelspecs without Kubernetes metadata are skipped unless
    /// [`default_image`](Self::default_image) is set.
    pub search: SearchPath,
    /// The image for kernelspecs that name none. If this is `None`, a kernelspec with Kubernetes metadata but no image
    /// is broken.
    pub default_image: Option<String>,
    /// What users may set with `KERNEL_*` variables.
    pub policy: Policy,
    /// Volumes of every kernel's pod, like `KERNEL_VOLUMES` in Enterprise Gateway's own environment.
    pub volumes: Vec<Volume>,
    /// Where these volumes are mounted, like Enterprise Gateway's `KERNEL_VOLUME_MOUNTS`.
    pub volume_mounts: Vec<VolumeMount>,
    /// How to connect to kernels.
    pub reach: Reach,
    /// The directory for port-forward sockets. `None` uses the directory for temporary files.
    ///
    /// Unix limits a socket's path to 107 bytes, so this must be short.
    pub socket_dir: Option<PathBuf>,
    /// How long a pod may wait for a node with room, for example in a cluster that scales up on demand. If this is
    /// zero, a launch without room fails at once with the reason.
    pub wait_for_room: Duration,
    /// How long another provider in the namespace may take to create a new pod's Secret, or to remove a pod that cannot
    /// start.
    ///
    /// When this provider opens, it looks for pods in such a state. It considers a pod orphaned, and removes it, if the
    /// pod is still in such a state after this time, or after [`wait_for_room`](Self::wait_for_room) if that is longer.
    pub orphaned_after: Duration,
    /// The image with the program `kernelmux-agent`. If set, each new kernel has an agent in its pod: a process that
    /// starts the kernel, records its messages, and outlives this program. No message is lost while this program is not
    /// running. `None` starts kernels directly.
    pub agent_image: Option<String>,
    /// How many bytes of a kernel's messages its agent keeps until this program has stored them. Beyond that, a kernel
    /// that can block on its output does so. For any other kernel, the oldest messages are dropped, and a gap is
    /// reported.
    pub spool_bytes: u64,
    /// How long the agent of an idle kernel waits for a connection before it ends the kernel and the pod; `None` for no
    /// limit.
    pub orphan_timeout: Option<Duration>,
    /// How many pods of kernels that ended by themselves are kept, so that the cause remains available. The oldest are
    /// removed first.
    pub keep_ended: usize,
}

impl K8sOptions {
    /// Creates options for this namespace, with Jupyter's default kernelspec search path and defaults for
    /// everything else.
    #[must_use]
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            name: "k8s".to_owned(),
            namespace: namespace.into(),
            search: SearchPath::from_env(&PathEnv::from_process()),
            default_image: None,
            policy: Policy::default(),
            volumes: Vec::new(),
            volume_mounts: Vec::new(),
            reach: Reach::Auto,
            socket_dir: None,
            wait_for_room: Duration::ZERO,
            orphaned_after: Duration::from_secs(60),
            agent_image: None,
            spool_bytes: 1 << 30,
            orphan_timeout: None,
            keep_ended: 32,
        }
    }

    /// Sets the provider's name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets where to search for kernelspecs.
    #[must_use]
    pub fn with_search(mut self, search: SearchPath) -> Self {
        self.search = search;
        self
    }

    /// Sets the image for kernelspecs that name none.
    #[must_use]
    pub fn with_default_image(mut self, default_image: impl Into<String>) -> Self {
        self.default_image = Some(default_image.into());
        self
    }

    /// Sets what users may set with `KERNEL_*` variables.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets how to connect to kernels.
    #[must_use]
    pub fn with_reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Sets how long a pod may wait for a node with room.
    #[must_use]
    pub fn with_wait_for_room(mut self, wait_for_room: Duration) -> Self {
        self.wait_for_room = wait_for_room;
        self
    }

    /// Sets how long another provider may take to complete or remove a pod.
    #[must_use]
    pub fn with_orphaned_after(mut self, orphaned_after: Duration) -> Self {
        self.orphaned_after = orphaned_after;
        self
    }

    /// Gives each new kernel an agent, whose program `kernelmux-agent` is in this image.
    ///
    /// The program must run in the kernels' images too. An init container of this image runs it to copy itself into the
    /// pod.
    #[must_use]
    pub fn with_agent_image(mut self, agent_image: impl Into<String>) -> Self {
        self.agent_image = Some(agent_image.into());
        self
    }

    /// Sets how many bytes of a kernel's messages its agent keeps until this program has stored them.
    #[must_use]
    pub fn with_spool_bytes(mut self, spool_bytes: u64) -> Self {
        self.spool_bytes = spool_bytes;
        self
    }

    /// Sets how long the agent of an idle kernel waits for a connection.
    #[must_use]
    pub fn with_orphan_timeout(mut self, orphan_timeout: impl Into<Option<Duration>>) -> Self {
        self.orphan_timeout = orphan_timeout.into();
        self
    }

    /// Parameters of the agents of new kernels; `None` if they have no agents.
    pub(crate) fn agent(&self) -> Option<AgentParams<'_>> {
        Some(AgentParams {
            image: self.agent_image.as_deref()?,
            spool_bytes: self.spool_bytes,
            orphan_timeout: self.orphan_timeout,
        })
    }

    /// Prepends the configured volumes and mounts to a kernelspec's.
    pub(crate) fn add_volumes(&self, settings: &mut Settings) {
        settings.volumes.splice(0..0, self.volumes.iter().cloned());
        settings.volume_mounts.splice(0..0, self.volume_mounts.iter().cloned());
    }

    /// Reads the volumes for all kernels from environment variables, as Enterprise Gateway does.
    ///
    /// The variables are `KERNEL_VOLUMES` and `KERNEL_VOLUME_MOUNTS`, each a YAML list. `lookup` returns the value of a
    /// variable of this program. Unset and empty variables are ignored.
    ///
    /// # Errors
    /// [`ProviderError`] if a variable is not a valid list; the error names the variable.
    pub fn set_volumes_from_env(&mut self, lookup: impl Fn(&str) -> Option<String>) -> Result<(), ProviderError> {
        let value = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        if let Some(text) = value("KERNEL_VOLUMES") {
            self.volumes = yaml(&text).map_err(|error| ProviderError::failed("parse KERNEL_VOLUMES", error))?;
        }
        if let Some(text) = value("KERNEL_VOLUME_MOUNTS") {
            self.volume_mounts =
                yaml(&text).map_err(|error| ProviderError::failed("parse KERNEL_VOLUME_MOUNTS", error))?;
        }
        Ok(())
    }
}

/// How to connect to kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// Pod addresses if this program runs in a pod, otherwise port-forwards.
    #[default]
    Auto,
    /// Pod addresses. This program must run in the cluster, or in a network with a route to its pods.
    PodAddress,
    /// Port-forwards through the API server, which require the right to create `pods/portforward`. Each kernel socket
    /// gets a local Unix socket that only this user can access.
    PortForward,
}

impl Reach {
    /// Whether to use port-forwards.
    pub(crate) fn forwards(self) -> bool {
        match self {
            Self::Auto => std::env::var_os("KUBERNETES_SERVICE_HOST").is_none(),
            Self::PodAddress => false,
            Self::PortForward => true,
        }
    }
}
