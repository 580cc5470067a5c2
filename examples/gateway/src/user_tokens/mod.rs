//! Users with hashed tokens, from a file that the gateway follows.
//!
//! Hashes are slow on purpose, so the keyed hash of each verified token is kept, and further tokens are compared with
//! it. A token names its user, so one token causes at most one slow hash.

mod file;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit::Act;
use crate::identity::Identity;
use crate::keyed_hash::{KeyedHash, TokenHasher};
use crate::{AuditLog, FileChanges};

pub use file::{User, UsersFile, UsersFileError};
pub use token::UserToken;

/// How many tokens are hashed at a time. Each occupies a processor and 19 MiB.
const MAX_HASHES: usize = 1;
/// How long a token may wait to be hashed.
const HASH_WAIT: Duration = Duration::from_secs(5);
/// After a wrong token, how long the next one of the same user waits.
const WRONG_PAUSE: Duration = Duration::from_secs(1);
/// Too many tokens wait to be hashed.
#[derive(Debug, PartialEq)]
pub(crate) struct Busy;

/// The users of a [`UsersFile`], kept up to date while the gateway runs. Clones share them.
#[derive(Clone)]
pub struct Users {
    shared: Arc<SharedUsers>,
}

struct SharedUsers {
    file: UsersFile,
    /// By the id in their tokens.
    users: Mutex<HashMap<String, Arc<KnownUser>>>,
    hashing: Arc<Semaphore>,
    /// Makes [`KnownUser::verified`].
    hasher: TokenHasher,
}

struct KnownUser {
    user: User,
    identity: Arc<Identity>,
    revoked: CancellationToken,
    /// The keyed hash of the user's token, once it was verified.
    verified: OnceLock<KeyedHash>,
    /// One token of a user is hashed at a time.
    turn: Arc<Semaphore>,
}

impl KnownUser {
    fn new(user: User) -> Self {
        let revoked = CancellationToken::new();
        let mut identity = Identity::new(user.name.clone(), user.groups.clone(), user.role);
        identity.revoked = Some(revoked.clone());
        Self {
            user,
            identity: Arc::new(identity),
            revoked,
            verified: OnceLock::new(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Whether the token with this hash is right; `None` if that is not known yet.
    fn known(&self, hash: &KeyedHash) -> Option<bool> {
        self.verified.get().map(|verified| verified.ct_eq(hash).into())
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("file", &self.shared.file)
            .finish_non_exhaustive()
    }
}

impl Users {
    /// Reads the users. Without the file, there are none until it is made. Blocks on the file system.
    ///
    /// # Errors
    /// [`UsersFileError`] if the file is damaged or open to others, or if its folder does not exist.
    pub fn open(file: UsersFile) -> Result<Self, UsersFileError> {
        let listed = match file.list() {
            Err(error @ UsersFileError::Missing(_)) if file.is_in_folder() => {
                warn!("there are no users yet: {error}");
                Vec::new()
            }
            listed => listed?,
        };
        let users = Self {
            shared: Arc::new(SharedUsers {
                file,
                users: Mutex::default(),
                hashing: Arc::new(Semaphore::new(MAX_HASHES)),
                hasher: TokenHasher::random(),
            }),
        };
        users.update(listed);
        Ok(users)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Arc<KnownUser>>> {
        kernel_provider::lock(&self.shared.users)
    }

    /// The groups of the user with this name; `None` if there is none.
    pub(crate) fn groups_of(&self, name: &str) -> Option<Vec<String>> {
        let users = self.users();
        let known = users.values().find(|known| known.user.name == name)?;
        Some(known.user.groups.clone())
    }

    /// Replaces the users. Those that are gone or changed are revoked. Returns what has changed.
    fn update(&self, listed: Vec<User>) -> Vec<String> {
        let mut changes = Vec::new();
        let mut users = self.users();
        let mut before = std::mem::take(&mut *users);
        for user in listed {
            let known = before.remove(&user.token_id);
            let known = match known {
                Some(known) if known.user == user => known,
                changed => {
                    changes.push(format!("{} has a new token, role or group", user.name));
                    before.extend(changed.map(|changed| (user.token_id.clone(), changed)));
                    Arc::new(KnownUser::new(user))
                }
            };
            users.insert(known.user.token_id.clone(), known);
        }
        for gone in before.values() {
            gone.revoked.cancel();
            info!(user = gone.user.name, "the user's token was revoked or changed");
            changes.push(format!("the earlier token of {} was revoked", gone.user.name));
        }
        changes
    }

    /// Reads the file after each change, until the future is dropped. A file that is wrong changes nothing.
    pub(crate) async fn follow(self, audit: Option<AuditLog>) {
        let mut changes = FileChanges::new(vec![self.shared.file.path().to_owned()]).await;
        let mut last_error = None;
        loop {
            let file = self.shared.file.clone();
            let Ok(listed) = spawn_blocking(move || file.list()).await else {
                // The async runtime is shutting down.
                return;
            };
            match listed {
                Ok(listed) => {
                    last_error = None;
                    for change in self.update(listed) {
                        if let Some(audit) = &audit {
                            audit.gateway_act(Act::Users, &change).await;
                        }
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if last_error.as_ref() != Some(&error) {
                        warn!(%error, "the users stay as they were, because their file is wrong");
                    }
                    last_error = Some(error);
                }
            }
            changes.next().await;
        }
    }

    /// The user with this token; `None` if there is none.
    ///
    /// # Errors
    /// [`Busy`] if the token cannot be checked now.
    pub(crate) async fn find(&self, token: &[u8]) -> Result<Option<Arc<Identity>>, Busy> {
        let Some((id, secret)) = UserToken::split(token) else {
            return Ok(None);
        };
        let Some(known) = self.users().get(id).cloned() else {
            return Ok(None);
        };
        let hash = self.shared.hasher.hash(token);
        let is_right = match known.known(&hash) {
            Some(is_right) => is_right,
            None => self.verify(&known, secret, hash).await?,
        };
        // It may have been revoked while it was hashed.
        Ok((is_right && !known.revoked.is_cancelled()).then(|| known.identity.clone()))
    }

    /// Hashes a token that was not verified before. The work continues if the client disconnects, so that disconnecting
    /// does not avoid the limits.
    async fn verify(&self, known: &Arc<KnownUser>, secret: &str, hash: KeyedHash) -> Result<bool, Busy> {
        let permits = async {
            // Semaphores that are never closed.
            let turn = known.turn.clone().acquire_owned().await.ok()?;
            let hashing = self.shared.hashing.clone().acquire_owned().await.ok()?;
            Some((turn, hashing))
        };
        let Ok(Some((turn, hashing))) = timeout(HASH_WAIT, permits).await else {
            return Err(Busy);
        };
        if let Some(is_right) = known.known(&hash) {
            return Ok(is_right);
        }
        let (known, secret) = (known.clone(), secret.to_owned());
        let verifying = tokio::spawn(async move {
            let stored = known.user.token_hash.clone();
            let verified = spawn_blocking(move || {
                let _hashing = hashing;
                let stored = PasswordHash::new(&stored);
                stored.is_ok_and(|stored| Argon2::default().verify_password(secret.as_bytes(), &stored).is_ok())
            });
            let is_right = verified.await.unwrap_or(false);
            if is_right {
                known.verified.get_or_init(|| hash);
            } else {
                tokio::spawn(async move {
                    let _turn = turn;
                    sleep(WRONG_PAUSE).await;
                });
            }
            is_right
        });
        Ok(verifying.await.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn users() -> (tempfile::TempDir, UsersFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile::new(folder.path().join("users.json"));
        (folder, file)
    }

    #[tokio::test]
    async fn a_token_is_hashed_once_and_wrong_ones_find_nobody() {
        let (_folder, file) = users();
        let ada = file.add("ada", Role::User, vec!["staff".to_owned()]).unwrap();
        let users = Users::open(file).unwrap();
        let token = ada.reveal().to_owned();
        for wrong in ["", "x", "kmx_", &format!("kmx_{}_x", &token[5..21])] {
            assert!(users.find(wrong.as_bytes()).await.unwrap().is_none(), "{wrong}");
        }
        let found = users.find(token.as_bytes()).await.unwrap().unwrap();
        assert_eq!((found.name.as_deref(), found.role), (Some("ada"), Role::User));
        assert_eq!(found.groups, ["staff"]);
        // No more tokens can be hashed, but none has to be.
        users.shared.hashing.close();
        assert!(users.find(token.as_bytes()).await.unwrap().is_some());
        for wrong in [format!("{token}0"), token[..token.len() - 1].to_owned()] {
            assert!(users.find(wrong.as_bytes()).await.unwrap().is_none(), "{wrong}");
        }
        assert!(!format!("{users:?}").contains(&token));
    }

    #[tokio::test]
    async fn a_file_that_is_made_later_has_the_first_users() {
        let (folder, file) = users();
        let users = Users::open(file.clone()).unwrap();
        let following = tokio::spawn(users.clone().follow(None));
        let ada = file.add("ada", Role::User, Vec::new()).unwrap();
        while users.groups_of("ada").is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(users.find(ada.reveal().as_bytes()).await.unwrap().is_some());
        following.abort();
        let elsewhere = UsersFile::new(folder.path().join("none/users.json"));
        assert!(matches!(Users::open(elsewhere), Err(UsersFileError::Missing(_))));
    }

    #[tokio::test]
    async fn many_wrong_tokens_wait_for_their_turn() {
        let (_folder, file) = users();
        let ada = file.add("ada", Role::User, Vec::new()).unwrap();
        let users = Users::open(file).unwrap();
        let wrong = format!("{}0", ada.reveal());
        assert!(users.find(wrong.as_bytes()).await.unwrap().is_none());
        // The pause after the wrong token.
        let known = users.users().values().next().cloned().unwrap();
        assert_eq!(known.turn.available_permits(), 0);
        assert_eq!(users.shared.hashing.available_permits(), MAX_HASHES);
        assert!(users.find(ada.reveal().as_bytes()).await.unwrap().is_some());
        // Other tokens of a verified user are not hashed.
        let _all = users.shared.hashing.acquire_many(MAX_HASHES as u32).await.unwrap();
        assert!(users.find(wrong.as_bytes()).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_cannot_be_hashed_in_time_is_busy() {
        let (_folder, file) = users();
        let ada = file.add("ada", Role::User, Vec::new()).unwrap();
        let users = Users::open(file).unwrap();
        let _all = users.shared.hashing.acquire_many(MAX_HASHES as u32).await.unwrap();
        assert_eq!(users.find(ada.reveal().as_bytes()).await.unwrap_err(), Busy);
    }

    #[tokio::test]
    async fn changes_of_the_file_take_effect_and_a_wrong_file_changes_nothing() {
        let (_folder, file) = users();
        let ada = file.add("ada", Role::User, Vec::new()).unwrap();
        let bob = file.add("bob", Role::User, Vec::new()).unwrap();
        let users = Users::open(file.clone()).unwrap();
        let following = tokio::spawn(users.clone().follow(None));
        let is_known = async |token: &UserToken| users.find(token.reveal().as_bytes()).await.unwrap().is_some();
        let until = async |token: &UserToken, expected: bool| {
            let waiting = async {
                while is_known(token).await != expected {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(60), waiting).await.unwrap();
        };
        let identity = users.find(ada.reveal().as_bytes()).await.unwrap().unwrap();
        file.remove("bob").unwrap();
        until(&bob, false).await;
        assert!(is_known(&ada).await && !identity.revoked.as_ref().unwrap().is_cancelled());
        let eve = file.add("eve", Role::User, Vec::new()).unwrap();
        until(&eve, true).await;
        let right = std::fs::read(file.path()).unwrap();
        crate::replace_file::replace_file(file.path(), b"{").unwrap();
        let zoe = {
            let other = UsersFile::new(file.path().with_extension("other"));
            std::fs::write(other.path(), &right).unwrap();
            std::fs::set_permissions(other.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let zoe = other.add("zoe", Role::User, Vec::new()).unwrap();
            other.remove("ada").unwrap();
            assert!(is_known(&ada).await && is_known(&eve).await);
            std::fs::rename(other.path(), file.path()).unwrap();
            zoe
        };
        until(&zoe, true).await;
        until(&ada, false).await;
        identity.ended().await;
        assert!(is_known(&eve).await);
        following.abort();
    }

    #[tokio::test]
    async fn a_file_behind_a_link_is_followed() {
        let (folder, real) = users();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = UsersFile::new(elsewhere.path().join("link.json"));
        std::os::unix::fs::symlink(folder.path().join("users.json"), link.path()).unwrap();
        let ada = real.add("ada", Role::User, Vec::new()).unwrap();
        let bob = real.add("bob", Role::User, Vec::new()).unwrap();
        let users = Users::open(link.clone()).unwrap();
        let following = tokio::spawn(users.clone().follow(None));
        for (file, name, token) in [(&link, "ada", ada), (&real, "bob", bob)] {
            let identity = users.find(token.reveal().as_bytes()).await.unwrap().unwrap();
            file.remove(name).unwrap();
            timeout(Duration::from_secs(2), identity.ended()).await.unwrap();
        }
        assert!(link.path().is_symlink());
        following.abort();
    }
}
