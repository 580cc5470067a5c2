use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::KernelId;

/// What identifies a running kernel: enough to attach to it, and no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelRecord {
    /// The [name](super::KernelProvider::name) of its provider.
    pub provider: String,
    /// The kernel's id.
    pub id: KernelId,
    /// Its kernelspec's name within the provider.
    pub spec: String,
    /// Whose it is.
    pub owner: Option<String>,
    /// When it was launched.
    pub launched: DateTime<Utc>,
    /// What the provider itself needs to find it again.
    pub data: Value,
}

impl KernelRecord {
    /// A record; `data` is the provider's own.
    #[must_use]
    pub fn new(
        provider: impl Into<String>,
        id: KernelId,
        spec: impl Into<String>,
        owner: Option<String>,
        launched: DateTime<Utc>,
        data: Value,
    ) -> Self {
        Self {
            provider: provider.into(),
            id,
            spec: spec.into(),
            owner,
            launched,
            data,
        }
    }
}

/// Which kernels to list; what is `None` lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selector {
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only those of this kernelspec.
    pub spec: Option<String>,
}

impl Selector {
    /// All kernels.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether the record passes.
    #[must_use]
    pub fn matches(&self, record: &KernelRecord) -> bool {
        self.owner
            .as_ref()
            .is_none_or(|owner| record.owner.as_ref() == Some(owner))
            && self.spec.as_ref().is_none_or(|spec| *spec == record.spec)
    }
}
