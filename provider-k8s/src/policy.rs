use std::collections::BTreeSet;

use crate::user_overrides::Input;

/// What users may set of their kernels' pods with `KERNEL_*` variables. What it does not allow is refused by its name.
///
/// The default lets users choose how much of CPU, memory and GPUs they ask for; what the namespace's quota allows is
/// Kubernetes' to say. A working directory that they may not choose is no error, but left out: JupyterLab's server sends
/// its own with each kernel, which is of use only where both have the same volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// What may be set.
    pub inputs: BTreeSet<Input>,
    /// Images that users may choose, where they may choose one at all: whole names, or beginnings that end with `*`.
    pub images: Vec<String>,
    /// Service accounts that they may choose.
    pub service_accounts: BTreeSet<String>,
    /// Persistent volume claims that they may not mount, such as the one with the logs of all of them.
    pub forbidden_claims: BTreeSet<String>,
    /// User and group ids that they may not choose.
    pub forbidden_ids: BTreeSet<i64>,
    /// Whether the volumes that they mount may be other than persistent volume claims. Such can reach anything in the
    /// namespace, Secrets included, and with `hostPath` the nodes.
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
    /// Allows each input there is, any image, and volumes that are persistent volume claims, as Enterprise Gateway does.
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
