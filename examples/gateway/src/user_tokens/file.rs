use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::PasswordHash;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::token::UserToken;
use crate::identity::{InvalidName, Role, checked_name};
use crate::replace_file::{give_to_owner, replace_file, target};

/// The version of the file's format.
const VERSION: u32 = 1;
/// Largest file, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Permissions that only the owner may have. A group may read the file, as with mounted Secrets.
const TOO_OPEN: u32 = 0o037;

/// A user in a [`UsersFile`]. Its `Debug` output hides the token's hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct User {
    /// The name, which owns the user's kernels.
    pub name: String,
    /// What the user may do.
    #[serde(default)]
    pub role: Role,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The part of the token that finds the user.
    pub(crate) token_id: String,
    /// The Argon2 hash of the token's secret part.
    pub(crate) token_hash: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("role", &self.role)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    users: Vec<User>,
}

/// Why a [`UsersFile`] cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsersFileError {
    /// The file does not exist.
    #[error("{} does not exist; make it with `kernelmux-gateway user add NAME --users-file {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// Other users of the machine can read or change the file.
    #[error("{} has the mode {mode:o}, which lets others read or change it; run `chmod 600 {}`", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The content is not that of a users file.
    #[error("{} is not a file of users: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        reason: String,
    },
    /// The user exists already.
    #[error("the user {0} exists already; use --replace to give them another token, role and groups")]
    Exists(String),
    /// The user does not exist.
    #[error("there is no user {0}; `kernelmux-gateway user list` shows all users")]
    NoSuchUser(String),
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The token could not be hashed.
    #[error("the token cannot be hashed: {0}")]
    Hash(argon2::password_hash::Error),
}

/// A JSON file of users with the hashes of their tokens.
///
/// A gateway that [uses the file](crate::Users) notices changes.
///
/// ```
/// use kernelmux_gateway::{Role, UsersFile};
///
/// # let folder = tempfile::tempdir()?;
/// let file = UsersFile::new(folder.path().join("users.json"));
/// let token = file.add("ada", Role::User, vec!["staff".to_owned()])?;
/// assert!(token.reveal().starts_with("kmx_"));
/// assert_eq!(file.list()?[0].name, "ada");
/// file.remove("ada")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct UsersFile {
    path: PathBuf,
}

impl UsersFile {
    /// The file with this path, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file's folder exists.
    pub(super) fn is_in_folder(&self) -> bool {
        // The parent of a relative path without a folder is empty.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.is_none_or(Path::is_dir)
    }

    /// Lists the users in the order of the file. Blocks on the file system.
    ///
    /// # Errors
    /// [`UsersFileError`] if the file is missing, damaged, or open to others.
    pub fn list(&self) -> Result<Vec<User>, UsersFileError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(UsersFileError::Missing(self.path.clone()));
            }
            Err(error) => return Err(self.failed(error)),
        };
        let metadata = file.metadata().map_err(|error| self.failed(error))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & TOO_OPEN != 0 {
            return Err(UsersFileError::Mode {
                path: self.path.clone(),
                mode,
            });
        }
        let mut json = Vec::new();
        let read = (&mut file).take(MAX_BYTES + 1).read_to_end(&mut json);
        read.map_err(|error| self.failed(error))?;
        if json.len() as u64 > MAX_BYTES {
            return Err(self.invalid(format!("it has more than {MAX_BYTES} bytes")));
        }
        self.parse(&json)
    }

    fn parse(&self, json: &[u8]) -> Result<Vec<User>, UsersFileError> {
        let content: Content = serde_json::from_slice(json).map_err(|error| self.invalid(error))?;
        if content.version != VERSION {
            let reason = format!(
                "its version is {}, and this gateway reads version {VERSION}",
                content.version
            );
            return Err(self.invalid(reason));
        }
        for (index, user) in content.users.iter().enumerate() {
            checked_name(&user.name).map_err(|error| self.invalid(error))?;
            for group in &user.groups {
                checked_name(group).map_err(|error| self.invalid(error))?;
            }
            if PasswordHash::new(&user.token_hash).is_err() {
                return Err(self.invalid(format!("the token_hash of {} is no Argon2 hash", user.name)));
            }
            let mut before = content.users.iter().take(index);
            if before.any(|other| other.name == user.name || other.token_id == user.token_id) {
                return Err(self.invalid(format!("{} has the name or token_id of another user", user.name)));
            }
        }
        Ok(content.users)
    }

    /// Adds a user, and makes the file if it is missing. Returns the user's token, which is not kept. Blocks on the file
    /// system and while the token is hashed.
    ///
    /// # Errors
    /// [`UsersFileError::Exists`] if there is a user of this name, and other errors if the file cannot be changed.
    pub fn add(&self, name: &str, role: Role, groups: Vec<String>) -> Result<UserToken, UsersFileError> {
        self.put(name, role, groups, false)
    }

    /// Adds a user, or gives an existing one another token, role and groups. The old token stops working.
    ///
    /// # Errors
    /// [`UsersFileError`] if the file cannot be changed.
    pub fn replace(&self, name: &str, role: Role, groups: Vec<String>) -> Result<UserToken, UsersFileError> {
        self.put(name, role, groups, true)
    }

    fn put(&self, name: &str, role: Role, groups: Vec<String>, replaces: bool) -> Result<UserToken, UsersFileError> {
        checked_name(name)?;
        for group in &groups {
            checked_name(group)?;
        }
        let token = UserToken::random();
        let hash = Argon2::default().hash_password(token.secret().as_bytes());
        let user = User {
            name: name.to_owned(),
            role,
            groups,
            token_id: token.id().to_owned(),
            token_hash: hash.map_err(UsersFileError::Hash)?.to_string(),
        };
        let _lock = self.lock()?;
        let mut users = match self.list() {
            Err(UsersFileError::Missing(_)) => Vec::new(),
            users => users?,
        };
        match users.iter_mut().find(|known| known.name == name) {
            Some(known) if replaces => *known = user,
            Some(_) => return Err(UsersFileError::Exists(name.to_owned())),
            None => users.push(user),
        }
        self.write(users)?;
        Ok(token)
    }

    /// Removes a user, whose token stops working.
    ///
    /// # Errors
    /// [`UsersFileError::NoSuchUser`] if there is no such user, and other errors if the file cannot be changed.
    pub fn remove(&self, name: &str) -> Result<(), UsersFileError> {
        let _lock = self.lock()?;
        let mut users = self.list()?;
        let before = users.len();
        users.retain(|user| user.name != name);
        if users.len() == before {
            return Err(UsersFileError::NoSuchUser(name.chars().take(64).collect()));
        }
        self.write(users)
    }

    fn write(&self, users: Vec<User>) -> Result<(), UsersFileError> {
        let content = Content {
            version: VERSION,
            users,
        };
        let mut json = serde_json::to_vec_pretty(&content).map_err(|error| self.invalid(error))?;
        json.push(b'\n');
        replace_file(&self.path, &json).map_err(|error| self.failed(error))
    }

    /// Makes other processes wait with their changes. The lock is another file, because a change replaces the file.
    fn lock(&self) -> Result<File, UsersFileError> {
        let path = target(&self.path).map_err(|error| self.failed(error))?;
        let mut name = path.clone().into_os_string();
        name.push(".lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(name);
        let lock = lock.map_err(|error| self.failed(error))?;
        // The owner of the file can use the lock, too.
        if let Ok(file) = path.metadata() {
            give_to_owner(&lock, &file).map_err(|error| self.failed(error))?;
        }
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.failed(error.into()))?;
        Ok(lock)
    }

    fn failed(&self, source: io::Error) -> UsersFileError {
        UsersFileError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn invalid(&self, reason: impl fmt::Display) -> UsersFileError {
        UsersFileError::Content {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_added_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile::new(folder.path().join("users.json"));
        assert!(matches!(file.list(), Err(UsersFileError::Missing(_))));
        let ada = file.add("ada", Role::Admin, vec!["staff".to_owned()]).unwrap();
        let bob = file.add("bob", Role::User, Vec::new()).unwrap();
        assert_ne!(ada.reveal(), bob.reveal());
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains(ada.secret()), "{text}");
        assert!(matches!(
            file.add("bob", Role::User, Vec::new()),
            Err(UsersFileError::Exists(_))
        ));
        let new = file.replace("bob", Role::Viewer, Vec::new()).unwrap();
        assert_ne!(new.id(), bob.id());
        let users = file.list().unwrap();
        let shown: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.role)).collect();
        assert_eq!(shown, [("ada", Role::Admin), ("bob", Role::Viewer)]);
        assert!(!format!("{users:?}").contains("argon2"));
        file.remove("ada").unwrap();
        assert!(matches!(file.remove("ada"), Err(UsersFileError::NoSuchUser(_))));
        assert!(file.add("a/b", Role::User, Vec::new()).is_err());
        assert!(file.add("a", Role::User, vec![String::new()]).is_err());
    }

    #[test]
    fn wrong_files_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile::new(folder.path().join("users.json"));
        file.add("ada", Role::User, Vec::new()).unwrap();
        let right = std::fs::read_to_string(file.path()).unwrap();
        let user = right[right.find('{').unwrap() + 1..].split_once('[').unwrap().1;
        let user = user.rsplit_once(']').unwrap().0.to_owned();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        for (text, reason) in [
            ("", "EOF"),
            ("{}", "version"),
            (r#"{"version": 2, "users": []}"#, "version is 2"),
            (r#"{"version": 1, "users": [], "usres": []}"#, "usres"),
            (
                &format!(r#"{{"version": 1, "users": [{user}, {user}]}}"#),
                "another user",
            ),
            (&right.replace("$argon2id$", "$"), "no Argon2 hash"),
            (&right.replace("\"user\"", "\"root\""), "root"),
            (&right.replace("\"ada\"", "\"a/b\""), "cannot be the name"),
        ] {
            write(text);
            let error = file.list().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        write(&right);
        for (mode, is_right) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o644, false),
            (0o660, false),
        ] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(file.list().is_ok(), is_right, "{mode:o}");
        }
    }
}
