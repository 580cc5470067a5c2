use std::path::PathBuf;
use std::time::Duration;

use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::paths::PathEnv;
use k8s_openapi::api::core::v1::{Volume, VolumeMount};

use kernel_provider::provider::ProviderError;

use crate::policy::Policy;
use crate::settings::Settings;
use crate::user_overrides::yaml;

/// How a [`K8sProvider`](crate::K8sProvider) runs kernels.
///
/// ```
/// use provider_k8s::{K8sConfig, Reach};
///
/// let mut config = K8sConfig::new("notebooks");
/// config.reach = Reach::PortForward;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct K8sConfig {
    /// The provider's name: the part before the slash in `k8s/python3`. It is also a label's value, so it has at most
    /// 63 letters, digits, `-`, `_` and `.`. Providers of the same name in the same namespace see the same kernels.
    pub name: String,
    /// Where the kernels' pods are.
    pub namespace: String,
    /// Where kernelspecs are looked for. Those that say nothing of Kubernetes are passed over, unless there is a
    /// [`default_image`](Self::default_image).
    pub search: SearchPath,
    /// The image for kernelspecs that name none; `None` passes them over.
    pub default_image: Option<String>,
    /// What users may set with `KERNEL_*` variables.
    pub policy: Policy,
    /// Volumes that every kernel's pod has, as Enterprise Gateway's `KERNEL_VOLUMES` in the server's environment.
    pub volumes: Vec<Volume>,
    /// Where they are mounted, as Enterprise Gateway's `KERNEL_VOLUME_MOUNTS`.
    pub volume_mounts: Vec<VolumeMount>,
    /// How kernels are reached.
    pub reach: Reach,
    /// Where the sockets of port-forwards are made. Unix limits a socket's path to 107 bytes, so this must be short.
    /// `None` takes the directory for temporary files.
    pub socket_dir: Option<PathBuf>,
    /// How long a pod that no node has room for may wait for one, as for a cluster that grows when it is full. Without
    /// such a wait the launch fails at once and says what is lacking.
    pub wait_for_room: Duration,
    /// How long another provider, of those that share the namespace, may take from a pod to its Secret, and to remove one
    /// that cannot start. What is found like that at the start, and still is after this (and after
    /// [`wait_for_room`](Self::wait_for_room), if that is longer), was left by one that was killed, and is removed.
    pub abandoned_after: Duration,
    /// How many pods of kernels that ended by themselves are kept, so that what ended them can still be told; the eldest
    /// go first.
    pub keep_ended: usize,
}

impl K8sConfig {
    /// A configuration for this namespace, with kernelspecs from where Jupyter looks for them, and defaults for all
    /// else.
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
            abandoned_after: Duration::from_secs(60),
            keep_ended: 32,
        }
    }

    /// Enters the volumes that every kernel's pod has.
    pub(crate) fn add_volumes(&self, settings: &mut Settings) {
        settings.volumes.splice(0..0, self.volumes.iter().cloned());
        settings.volume_mounts.splice(0..0, self.volume_mounts.iter().cloned());
    }

    /// Takes over the volumes that an operator of Enterprise Gateway sets for all kernels: the variables
    /// `KERNEL_VOLUMES` and `KERNEL_VOLUME_MOUNTS` of the server's own environment, lists in YAML.
    ///
    /// # Errors
    /// [`ProviderError`] where one is not such a list; it names the variable.
    pub fn set_volumes_from_env(&mut self, lookup: impl Fn(&str) -> Option<String>) -> Result<(), ProviderError> {
        let value = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        if let Some(text) = value("KERNEL_VOLUMES") {
            self.volumes = yaml(&text).map_err(|error| ProviderError::failed("take KERNEL_VOLUMES", error))?;
        }
        if let Some(text) = value("KERNEL_VOLUME_MOUNTS") {
            self.volume_mounts =
                yaml(&text).map_err(|error| ProviderError::failed("take KERNEL_VOLUME_MOUNTS", error))?;
        }
        Ok(())
    }
}

/// How kernels are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// By the pod's address where this program runs in a pod itself, else by port-forwards.
    #[default]
    Auto,
    /// By the pod's address: this program is in the cluster, or on a network that has a route to its pods.
    PodAddress,
    /// Through the API server, which takes the right to create `pods/portforward`. Each socket is a Unix socket here, for
    /// this user only.
    PortForward,
}

impl Reach {
    /// Whether port-forwards are to be made.
    pub(crate) fn forwards(self) -> bool {
        match self {
            Self::Auto => std::env::var_os("KUBERNETES_SERVICE_HOST").is_none(),
            Self::PodAddress => false,
            Self::PortForward => true,
        }
    }
}
