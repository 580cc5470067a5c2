use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A kernel's id: a UUID of any version, written with hyphens. Names of files, pods and logs contain the id.
///
/// The caller chooses the id before the launch, so that repeating the launch does not create a second kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KernelId(Uuid);

impl KernelId {
    /// Creates a random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the id as a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for KernelId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// Error of parsing text that is not a kernel id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kernel id: an id is a UUID with hyphens, such as 3fa85f64-5717-4562-b3fc-2c963f66afa6")]
pub struct InvalidKernelId;

impl FromStr for KernelId {
    type Err = InvalidKernelId;

    /// Accepts only the form with hyphens, in upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 36 {
            return Err(InvalidKernelId);
        }
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidKernelId)
    }
}
