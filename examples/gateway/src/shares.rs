//! Links that show a kernel's cells to people without an account.
//!
//! Only hashes of the links' tokens are kept, so that neither the file nor a backup of it gives access.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::KernelId;
use kernel_log::Epoch;
use kernel_manager::Kernel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use crate::identity::Identity;
use crate::replace_file::replace_file;

/// The most shares of one kernel.
const MAX_PER_KERNEL: usize = 64;
/// The most shares of one owner's kernels.
const MAX_PER_OWNER: usize = 1_024;
/// The most shares of all kernels.
const MAX_SHARES: usize = 8_192;
/// The default lifetime of a share.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest and the longest lifetime of a share.
pub(crate) const MIN_LIFETIME: Duration = Duration::from_secs(1);
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One start of a kernel. Its shares show nothing of other starts with the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct SharedKernel {
    pub(crate) id: KernelId,
    /// The epoch of its log.
    pub(crate) epoch: Epoch,
    owner: Option<String>,
    pub(crate) launched: DateTime<Utc>,
}

impl SharedKernel {
    pub(crate) fn of(kernel: &Kernel) -> Self {
        Self {
            id: kernel.id(),
            epoch: kernel.log().epoch(),
            owner: kernel.owner().map(str::to_owned),
            launched: kernel.launched(),
        }
    }

    pub(crate) fn is(&self, kernel: &Kernel) -> bool {
        // Some providers store the time in milliseconds.
        let apart = (kernel.launched() - self.launched).abs();
        let now = Self::of(kernel);
        apart < TimeDelta::milliseconds(1) && (self.id, self.epoch, &self.owner) == (now.id, now.epoch, &now.owner)
    }
}

/// Users and groups of the gateway with whom a kernel is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readers {
    #[serde(default)]
    pub(crate) users: Vec<String>,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
}

impl Readers {
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

/// A link to a kernel's live page, without its token, or the permission of users to read a kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) id: Uuid,
    /// SHA-256 of the token, in hexadecimal; empty if there is no token.
    hash: String,
    pub(crate) kernel: SharedKernel,
    /// The notebook's path, as in the request for the share.
    pub(crate) path: Option<String>,
    /// Users and groups who may read the kernel. A share with some has no link.
    #[serde(default, skip_serializing_if = "Readers::is_empty")]
    pub(crate) readers: Readers,
    pub(crate) created: DateTime<Utc>,
    pub(crate) expires: DateTime<Utc>,
}

impl Share {
    /// Whether the kernel is shared with this user.
    pub(crate) fn is_with(&self, identity: &Identity) -> bool {
        let Some(name) = &identity.name else { return false };
        let Readers { users, groups } = &self.readers;
        users.contains(name) || groups.iter().any(|group| identity.groups.contains(group))
    }

    fn is_valid(&self, now: DateTime<Utc>) -> bool {
        now < self.expires
    }
}

/// Why no share was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    #[error("there are {0} shares already; revoke some, or wait until they expire")]
    TooMany(usize),
    #[error("the share cannot be stored: {0}")]
    Write(#[from] io::Error),
}

/// All shares.
pub(crate) struct Shares {
    all: Mutex<Vec<Share>>,
    file: Option<PathBuf>,
    /// Whether the file lacks a change. The lock is held while shares are changed and the file is written, so that an
    /// older state never replaces a newer one.
    is_outdated: Arc<tokio::sync::Mutex<bool>>,
    /// Incremented when a share is revoked.
    revoked: watch::Sender<u64>,
}

impl Shares {
    /// Reads the shares of the file, which does not need to exist. With `None`, shares are kept in memory only. Blocks
    /// on the file system.
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
            is_outdated: Arc::default(),
            revoked: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Share>> {
        kernel_provider::lock(&self.all)
    }

    /// Makes a share and returns it with its token, which is not kept. A share with readers has no token.
    pub(crate) async fn create(
        self: &Arc<Self>,
        kernel: SharedKernel,
        path: Option<String>,
        readers: Readers,
        lifetime: Duration,
    ) -> Result<(Share, Option<String>), ShareError> {
        let now = Utc::now();
        let token = readers.is_empty().then(new_token);
        let share = Share {
            id: Uuid::new_v4(),
            // No token has an empty hash.
            hash: token.as_deref().map(hash).unwrap_or_default(),
            kernel,
            path,
            readers,
            created: now,
            expires: now + TimeDelta::from_std(lifetime).unwrap_or(TimeDelta::days(1)),
        };
        let added = share.clone();
        let changed = self.change(move |all| {
            all.retain(|share| share.is_valid(now));
            let of_kernel = all.iter().filter(|share| share.kernel.id == added.kernel.id).count();
            let of_owner = all
                .iter()
                .filter(|share| share.kernel.owner == added.kernel.owner)
                .count();
            for (number, most) in [
                (of_kernel, MAX_PER_KERNEL),
                (of_owner, MAX_PER_OWNER),
                (all.len(), MAX_SHARES),
            ] {
                if number >= most {
                    return (Err(number), true);
                }
            }
            all.push(added);
            (Ok(()), true)
        });
        match changed.await {
            (Some(Err(number)), _) => Err(ShareError::TooMany(number)),
            (_, Ok(())) => Ok((share, token)),
            (_, Err(error)) => {
                self.lock().retain(|known| known.id != share.id);
                Err(error.into())
            }
        }
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
        let of_kernel = all
            .iter()
            .filter(|share| share.kernel.id == kernel && share.is_valid(now));
        of_kernel.cloned().collect()
    }

    /// The oldest valid share of a kernel that `is_wanted`.
    pub(crate) fn find_of_kernel(&self, kernel: KernelId, is_wanted: impl Fn(&Share) -> bool) -> Option<Uuid> {
        let now = Utc::now();
        let all = self.lock();
        let found = all
            .iter()
            .find(|share| share.kernel.id == kernel && share.is_valid(now) && is_wanted(share));
        found.map(|share| share.id)
    }

    /// Revokes a share; returns whether it existed. Its link stops working before this returns. After an error, the
    /// link may work again once the gateway restarts.
    pub(crate) async fn revoke(self: &Arc<Self>, kernel: KernelId, id: Uuid) -> io::Result<bool> {
        self.remove(move |share| share.id == id && share.kernel.id == kernel)
            .await
    }

    /// Removes all shares of a kernel whose log was removed.
    pub(crate) async fn forget(self: &Arc<Self>, kernel: KernelId) {
        self.remove_or_warn(kernel, move |share| share.kernel.id == kernel)
            .await;
    }

    /// Removes the shares of earlier kernels with the same id.
    pub(crate) async fn forget_before(self: &Arc<Self>, kernel: &Kernel) {
        let started = SharedKernel::of(kernel);
        self.remove_or_warn(kernel.id(), move |share| {
            share.kernel.id == started.id && share.kernel.launched < started.launched
        })
        .await;
    }

    async fn remove_or_warn(self: &Arc<Self>, kernel: KernelId, is_removed: impl Fn(&Share) -> bool + Send + 'static) {
        if !self.lock().iter().any(&is_removed) {
            return;
        }
        if let Err(error) = self.remove(is_removed).await {
            warn!(kernel_id = %kernel, %error, "removed shares may work again after a restart of the gateway");
        }
    }

    async fn remove(self: &Arc<Self>, is_removed: impl Fn(&Share) -> bool + Send + 'static) -> io::Result<bool> {
        let shares = self.clone();
        let (existed, written) = self
            .change(move |all| {
                let before = all.len();
                all.retain(|share| !is_removed(share));
                let existed = all.len() < before;
                if existed {
                    shares.revoked.send_modify(|count| *count += 1);
                }
                (existed, existed)
            })
            .await;
        written?;
        Ok(existed.unwrap_or_default())
    }

    /// Whether the share exists and has not expired.
    pub(crate) fn is_valid(&self, id: Uuid) -> bool {
        let now = Utc::now();
        self.lock().iter().any(|share| share.id == id && share.is_valid(now))
    }

    /// Waits until the share is revoked or expires.
    pub(crate) async fn ended(&self, id: Uuid) {
        let mut revocations = self.revocations();
        loop {
            let share = self.lock().iter().find(|share| share.id == id).cloned();
            let Some(left) = share.and_then(|share| (share.expires - Utc::now()).to_std().ok()) else {
                return;
            };
            // The sender lives as long as `self`.
            let _ = timeout(left, revocations.changed()).await;
        }
    }

    /// Changes when a share is revoked.
    pub(crate) fn revocations(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Changes the shares and writes the file, even if the caller stops waiting. `change` also returns whether it
    /// changed anything.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Vec<Share>) -> (T, bool) + Send + 'static,
    ) -> (Option<T>, io::Result<()>) {
        let shares = self.clone();
        let changing = tokio::spawn(async move {
            let mut is_outdated = shares.is_outdated.clone().lock_owned().await;
            let (result, is_changed) = change(&mut shares.lock());
            *is_outdated |= is_changed;
            let written = if *is_outdated { shares.write().await } else { Ok(()) };
            *is_outdated &= written.is_err();
            (Some(result), written)
        });
        changing
            .await
            .unwrap_or_else(|error| (None, Err(io::Error::other(error))))
    }

    async fn write(&self) -> io::Result<()> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let json = serde_json::to_vec(&*self.lock()).map_err(io::Error::other)?;
        let written = tokio::task::spawn_blocking(move || replace_file(&file, &json)).await;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::Role;

    fn kernel() -> SharedKernel {
        SharedKernel {
            id: KernelId::random(),
            epoch: Epoch::random(),
            owner: None,
            launched: Utc::now(),
        }
    }

    async fn create(
        shares: &Arc<Shares>,
        kernel: &SharedKernel,
        lifetime: Duration,
    ) -> Result<(Share, String), ShareError> {
        let path = Some("a.ipynb".to_owned());
        let (share, token) = shares
            .create(kernel.clone(), path, Readers::default(), lifetime)
            .await?;
        Ok((share, token.unwrap()))
    }

    #[tokio::test]
    async fn a_share_with_readers_has_no_link_and_ends_when_it_is_revoked() {
        let shares = Arc::new(Shares::open(None));
        let kernel = kernel();
        let readers = Readers {
            users: vec!["bob".to_owned()],
            groups: vec!["staff".to_owned()],
        };
        let made = shares.create(kernel.clone(), None, readers, DEFAULT_LIFETIME).await;
        let (share, token) = made.unwrap();
        assert!(token.is_none() && shares.find("").is_none());
        let is_with = |name: &str, groups: &[&str]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            share.is_with(&Identity::new(name, groups, Role::Viewer))
        };
        assert!(is_with("bob", &[]) && is_with("eve", &["x", "staff"]));
        assert!(!is_with("eve", &["bob"]) && !is_with("staff", &[]) && !share.is_with(&Identity::shared()));
        let ended = tokio::spawn({
            let (shares, id) = (shares.clone(), share.id);
            async move { shares.ended(id).await }
        });
        assert!(shares.revoke(kernel.id, share.id).await.unwrap());
        timeout(Duration::from_secs(60), ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_share_is_found_by_its_token_only_until_it_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shares.json");
        let shares = Arc::new(Shares::open(Some(file.clone())));
        let kernel = kernel();
        let (share, token) = create(&shares, &kernel, DEFAULT_LIFETIME).await.unwrap();
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
        assert!(again.revoke(kernel.id, share.id).await.unwrap());
        assert!(revocations.has_changed().unwrap());
        assert!(again.find(&token).is_none() && !again.is_valid(share.id));
        assert!(Shares::open(Some(file)).find(&token).is_none());
    }

    #[tokio::test]
    async fn shares_expire_and_are_bounded() {
        let shares = Arc::new(Shares::open(None));
        let kernel = kernel();
        let (share, token) = create(&shares, &kernel, Duration::ZERO).await.unwrap();
        assert!(shares.find(&token).is_none() && !shares.is_valid(share.id));
        assert!(shares.of_kernel(kernel.id).is_empty());
        for _ in 0..MAX_PER_KERNEL {
            create(&shares, &kernel, DEFAULT_LIFETIME).await.unwrap();
        }
        let refused = create(&shares, &kernel, DEFAULT_LIFETIME).await;
        assert!(matches!(refused, Err(ShareError::TooMany(MAX_PER_KERNEL))));
        let other = SharedKernel {
            id: KernelId::random(),
            ..kernel
        };
        assert!(create(&shares, &other, DEFAULT_LIFETIME).await.is_ok());
    }

    #[tokio::test]
    async fn one_owner_cannot_use_up_all_shares() {
        let shares = Arc::new(Shares::open(None));
        let of = |owner: &str| SharedKernel {
            owner: Some(owner.to_owned()),
            ..kernel()
        };
        for _ in 0..MAX_PER_OWNER {
            create(&shares, &of("ada"), DEFAULT_LIFETIME).await.unwrap();
        }
        let refused = create(&shares, &of("ada"), DEFAULT_LIFETIME).await;
        assert!(matches!(refused, Err(ShareError::TooMany(MAX_PER_OWNER))));
        assert!(create(&shares, &of("bob"), DEFAULT_LIFETIME).await.is_ok());
    }

    #[tokio::test]
    async fn a_change_is_kept_if_its_caller_is_gone_or_an_earlier_write_failed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing/shares.json");
        let shares = Arc::new(Shares::open(Some(file.clone())));
        let kernel = kernel();
        assert!(create(&shares, &kernel, DEFAULT_LIFETIME).await.is_err());
        assert!(shares.of_kernel(kernel.id).is_empty());
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        let (share, token) = create(&shares, &kernel, DEFAULT_LIFETIME).await.unwrap();

        std::fs::rename(folder.path().join("missing"), folder.path().join("moved")).unwrap();
        assert!(shares.revoke(kernel.id, share.id).await.is_err());
        std::fs::rename(folder.path().join("moved"), folder.path().join("missing")).unwrap();
        assert!(Shares::open(Some(file.clone())).find(&token).is_some());
        // Nothing is left to revoke, but the file is written.
        assert!(!shares.revoke(kernel.id, share.id).await.unwrap());
        assert!(Shares::open(Some(file.clone())).find(&token).is_none());

        let revoked = create(&shares, &kernel, DEFAULT_LIFETIME).await.unwrap().0;
        {
            let revoking = shares.revoke(kernel.id, revoked.id);
            tokio::pin!(revoking);
            // Polled once, then dropped.
            assert!(futures::poll!(&mut revoking).is_pending());
        }
        while shares.is_valid(revoked.id) {
            tokio::task::yield_now().await;
        }
        // The next change waits for the one before.
        shares.forget(kernel.id).await;
        drop(shares.is_outdated.lock().await);
        assert!(Shares::open(Some(file)).of_kernel(kernel.id).is_empty());
        let names: Vec<_> = std::fs::read_dir(folder.path().join("missing")).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_damaged_file_gives_no_access() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shares.json");
        std::fs::write(&file, "{").unwrap();
        assert!(Shares::open(Some(file)).find("x").is_none());
    }
}
