use std::collections::BTreeSet;

use crate::user_overrides::Input;

/// What users may set for their kernels' pods with `KERNEL_*` variables. A launch with a forbidden variable fails with
/// an error that names the variable.
///
/// By default users may choose how much CPU, memory and how many GPUs they request, within the namespace's quota. A
/// working directory is ignored, without an error, unless users may choose one: JupyterLab's server sends its own with
/// each kernel, which is only useful if both share a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// The settings that users may override.
    pub inputs: BTreeSet<Input>,
    /// Images that users may choose if [`inputs`](Self::inputs) contains [`Input::Image`]: full names, or prefixes that
    /// end with `*`.
    pub images: Vec<String>,
    /// Service accounts that users may choose.
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
    /// Allows all settings, any image, and volumes that are persistent volume claims, as Enterprise Gateway does.
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
