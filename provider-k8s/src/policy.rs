use std::collections::BTreeSet;

use crate::user_overrides::Input;

/// What users may set for their kernels' pods with `KERNEL_*` variables. A launch with a forbidden variable fails with
/// an error that names the variable.
///
/// By default, users may choose the CPUs, memory and GPUs of their pods, within the namespace's quota. Unless users may
/// choose a working directory, a requested one is ignored without an error: JupyterLab's server sends its own directory
/// with each launch, and that directory is only useful if the server and the pod share a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// The settings that users may override.
    pub inputs: BTreeSet<Input>,
    /// Images that users may choose if [`inputs`](Self::inputs) contains [`Input::Image`]: full names, or prefixes that
    /// end with `*`.
    pub images: Vec<String>,
    /// Service accounts that users may choose if [`inputs`](Self::inputs) contains [`Input::ServiceAccount`].
    pub service_accounts: BTreeSet<String>,
    /// Persistent volume claims that users may not mount, such as the one with the gateway's logs.
    pub forbidden_claims: BTreeSet<String>,
    /// User and group ids that users may not choose.
    pub forbidden_ids: BTreeSet<i64>,
    /// Whether users may mount volumes other than persistent volume claims. These can expose anything in the namespace,
    /// including Secrets, and with `hostPath` the nodes' files.
    pub any_volume: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            inputs: BTreeSet::from([Input::Cpus, Input::Memory, Input::Gpus]),
            images: Vec::new(),
            service_accounts: BTreeSet::new(),
            forbidden_claims: BTreeSet::new(),
            forbidden_ids: BTreeSet::from([0]),
            any_volume: false,
        }
    }
}

impl Policy {
    /// Allows all settings, any image, and volumes that are persistent volume claims.
    ///
    /// Users still cannot choose a service account that is not in [`service_accounts`](Self::service_accounts), or the
    /// user or group id 0.
    #[must_use]
    pub fn permissive() -> Self {
        Self {
            inputs: Input::ALL.into_iter().collect(),
            images: vec!["*".to_owned()],
            ..Self::default()
        }
    }

    pub(crate) fn allows_image(&self, image: &str) -> bool {
        self.images.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => image.starts_with(beginning),
            None => image == allowed,
        })
    }
}
