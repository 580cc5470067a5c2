use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use jupyter_protocol::KernelId;

/// Identifies a running kernel: everything needed to attach to it, and no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelRecord {
    /// The [name](super::KernelProvider::name) of its provider.
    pub provider: String,
    /// The kernel's id.
    pub id: KernelId,
    /// The name of its kernelspec at the provider.
    pub spec: String,
    /// Its owner.
    pub owner: Option<String>,
    /// When it was launched.
    pub launched: DateTime<Utc>,
    /// The annotations of its [`LaunchRequest`](super::LaunchRequest::annotations).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Data that the provider needs to find it.
    pub data: Value,
}

impl KernelRecord {
    /// A record without annotations; `data` belongs to the provider.
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
            annotations: BTreeMap::new(),
            data,
        }
    }

    /// Sets the annotations.
    #[must_use]
    pub fn with_annotations(mut self, annotations: BTreeMap<String, String>) -> Self {
        self.annotations = annotations;
        self
    }
}

/// Selects kernels; a field that is `None` matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selector {
    /// Kernels of this owner.
    pub owner: Option<String>,
    /// Kernels of this kernelspec.
    pub spec: Option<String>,
}

impl Selector {
    /// All kernels.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether the record matches.
    #[must_use]
    pub fn matches(&self, record: &KernelRecord) -> bool {
        self.owner
            .as_ref()
            .is_none_or(|owner| record.owner.as_ref() == Some(owner))
            && self.spec.as_ref().is_none_or(|spec| *spec == record.spec)
    }
}
