//! Links that show a kernel's cells to people without an account.
//!
//! Only hashes of the links' tokens are kept, so that neither the file nor a backup of it gives access.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::KernelId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

/// The most shares of one kernel.
const MAX_PER_KERNEL: usize = 64;
/// The most shares of all kernels.
const MAX_SHARES: usize = 1_024;
/// How long a share lives unless the request says otherwise.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest and the longest life of a share.
pub(crate) const MIN_LIFETIME: Duration = Duration::from_secs(1);
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A link that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) id: Uuid,
    /// SHA-256 of the token, in hexadecimal.
    hash: String,
    pub(crate) kernel: KernelId,
    /// The notebook, as its maker named it.
    pub(crate) path: Option<String>,
    pub(crate) created: DateTime<Utc>,
    pub(crate) expires: DateTime<Utc>,
}

impl Share {
    fn is_valid(&self, now: DateTime<Utc>) -> bool {
        now < self.expires
    }
}

/// Why no share was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    #[error("there are {0} shares already; revoke some, or wait until they expire")]
    TooMany(usize),
    #[error("the share cannot be kept: {0}")]
    Write(#[from] io::Error),
}

/// All shares.
pub(crate) struct Shares {
    all: Mutex<Vec<Share>>,
    file: Option<PathBuf>,
    /// Held while the file is written, so that an older state never replaces a newer one.
    writing: tokio::sync::Mutex<()>,
    /// Incremented when a share is revoked.
    revoked: watch::Sender<u64>,
}

impl Shares {
    /// The shares of the file, which does not need to exist; `None` to keep them in memory only. Blocks on the file
    /// system.
    pub(crate) fn open(file: Option<PathBuf>) -> Self {
        let all = match file.as_deref().map(read) {
            None | Some(Ok(None)) => Vec::new(),
            Some(Ok(Some(all))) => all,
            Some(Err(error)) => {
                warn!(%error, "the shares cannot be read; links that were made before do not work");
                Vec::new()
            }
        };
        Self {
            all: Mutex::new(all),
            file,
            writing: tokio::sync::Mutex::default(),
            revoked: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Share>> {
        kernel_provider::lock(&self.all)
    }

    /// Makes a share and returns it with its token, which is not kept.
    pub(crate) async fn create(
        self: &Arc<Self>,
        kernel: KernelId,
        path: Option<String>,
        lifetime: Duration,
    ) -> Result<(Share, String), ShareError> {
        let now = Utc::now();
        let token = new_token();
        let share = Share {
            id: Uuid::new_v4(),
            hash: hash(&token),
            kernel,
            path,
            created: now,
            expires: now + TimeDelta::from_std(lifetime).unwrap_or(TimeDelta::days(1)),
        };
        {
            let mut all = self.lock();
            all.retain(|share| share.is_valid(now));
            let of_kernel = all.iter().filter(|share| share.kernel == kernel).count();
            if of_kernel >= MAX_PER_KERNEL || all.len() >= MAX_SHARES {
                return Err(ShareError::TooMany(of_kernel.max(MAX_PER_KERNEL.min(all.len()))));
            }
            all.push(share.clone());
        }
        if let Err(error) = self.write().await {
            self.lock().retain(|known| known.id != share.id);
            return Err(error.into());
        }
        Ok((share, token))
    }

    /// The share with this token, unless it has expired. Takes the same time for every wrong token.
    pub(crate) fn find(&self, token: &str) -> Option<Share> {
        let hash = hash(token);
        let mut found = None;
        for share in self.lock().iter() {
            if bool::from(share.hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(share.clone());
            }
        }
        found.filter(|share| share.is_valid(Utc::now()))
    }

    /// The valid shares of a kernel, oldest first.
    pub(crate) fn of_kernel(&self, kernel: KernelId) -> Vec<Share> {
        let now = Utc::now();
        let all = self.lock();
        let of_kernel = all.iter().filter(|share| share.kernel == kernel && share.is_valid(now));
        of_kernel.cloned().collect()
    }

    /// Revokes a share; returns whether it existed. Its link stops working before this returns, although an error says
    /// that it may work again after a start of the gateway.
    pub(crate) async fn revoke(self: &Arc<Self>, kernel: KernelId, id: Uuid) -> io::Result<bool> {
        let existed = {
            let mut all = self.lock();
            let before = all.len();
            all.retain(|share| share.id != id || share.kernel != kernel);
            all.len() < before
        };
        if existed {
            self.revoked.send_modify(|count| *count += 1);
            self.write().await?;
        }
        Ok(existed)
    }

    /// Whether the share exists and has not expired.
    pub(crate) fn is_valid(&self, id: Uuid) -> bool {
        let now = Utc::now();
        self.lock().iter().any(|share| share.id == id && share.is_valid(now))
    }

    /// Changes when a share is revoked.
    pub(crate) fn revocations(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    async fn write(self: &Arc<Self>) -> io::Result<()> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let _writing = self.writing.lock().await;
        let json = serde_json::to_vec(&*self.lock()).map_err(io::Error::other)?;
        let written = tokio::task::spawn_blocking(move || replace(&file, &json)).await;
        written.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// A random token of 64 hexadecimal digits, of which 244 bits are random.
fn new_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn hash(token: &str) -> String {
    let hash = Sha256::digest(token.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> io::Result<Option<Vec<Share>>> {
    let json = match std::fs::read(file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&json).map(Some).map_err(io::Error::other)
}

/// Replaces the file as a whole, readable for this user only.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut options = OpenOptions::new();
    let mut out: File = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(content)?;
    out.sync_all()?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_share_is_found_by_its_token_only_until_it_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shares.json");
        let shares = Arc::new(Shares::open(Some(file.clone())));
        let kernel = KernelId::random();
        let (share, token) = shares
            .create(kernel, Some("a.ipynb".to_owned()), DEFAULT_LIFETIME)
            .await
            .unwrap();
        assert!(token.len() >= 32, "{token}");
        assert_eq!(shares.find(&token).unwrap().id, share.id);
        for wrong in [
            "",
            "x",
            &token[1..],
            &format!("{token}0"),
            &hash(&token),
            &share.id.to_string(),
        ] {
            assert!(shares.find(wrong).is_none(), "{wrong}");
        }

        // The file has no token, and only this user may read it.
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&token) && text.contains("a.ipynb"), "{text}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Arc::new(Shares::open(Some(file.clone())));
        assert_eq!(again.find(&token).unwrap().id, share.id);

        let revocations = again.revocations();
        assert!(!again.revoke(KernelId::random(), share.id).await.unwrap());
        assert!(again.revoke(kernel, share.id).await.unwrap());
        assert!(revocations.has_changed().unwrap());
        assert!(again.find(&token).is_none() && !again.is_valid(share.id));
        assert!(Shares::open(Some(file)).find(&token).is_none());
    }

    #[tokio::test]
    async fn shares_expire_and_are_bounded() {
        let shares = Arc::new(Shares::open(None));
        let kernel = KernelId::random();
        let (share, token) = shares.create(kernel, None, Duration::ZERO).await.unwrap();
        assert!(shares.find(&token).is_none() && !shares.is_valid(share.id));
        assert!(shares.of_kernel(kernel).is_empty());
        for _ in 0..MAX_PER_KERNEL {
            shares.create(kernel, None, DEFAULT_LIFETIME).await.unwrap();
        }
        let refused = shares.create(kernel, None, DEFAULT_LIFETIME).await;
        assert!(matches!(refused, Err(ShareError::TooMany(MAX_PER_KERNEL))));
        assert!(shares.create(KernelId::random(), None, DEFAULT_LIFETIME).await.is_ok());
    }

    #[test]
    fn a_damaged_file_gives_no_access() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shares.json");
        std::fs::write(&file, "{").unwrap();
        assert!(Shares::open(Some(file)).find("x").is_none());
    }
}
