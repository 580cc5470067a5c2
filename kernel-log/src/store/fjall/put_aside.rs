//! Moves folders aside that fjall cannot open as keyspaces.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::StoreError;

/// The file with the current tables of a keyspace. fjall ignores keyspaces without it.
const CURRENT: &str = "current";

/// The folder to which they are moved.
pub(super) fn damaged(folder: &Path) -> PathBuf {
    folder.join("damaged")
}

/// Moves folders that are not keyspaces, such as `lost+found`, aside; fjall would panic.
pub(super) fn put_foreign_aside(folder: &Path) -> Result<(), StoreError> {
    let Ok(keyspaces) = fs::read_dir(folder.join("keyspaces")) else {
        return Ok(());
    };
    for keyspace in keyspaces.flatten() {
        let name = keyspace.file_name();
        let is_keyspace = name.to_str().is_some_and(|name| name.parse::<u64>().is_ok());
        if is_keyspace || !keyspace.path().is_dir() {
            continue;
        }
        let path = keyspace.path();
        let aside = damaged(folder).join(&name);
        fs::create_dir_all(damaged(folder))
            .and_then(|()| fs::rename(&path, &aside))
            .map_err(|error| StoreError::failed(format!("move {}, which is no log, aside", path.display()), error))?;
        tracing::warn!(path = %path.display(), aside = %aside.display(), "moved a folder aside that is no log");
    }
    Ok(())
}

/// Moves the files of unreadable keyspaces aside.
pub(super) fn put_damaged_aside(folder: &Path) {
    let Ok(keyspaces) = fs::read_dir(folder.join("keyspaces")) else {
        return;
    };
    let mut is_any_sound = false;
    let mut broken = Vec::new();
    for keyspace in keyspaces.flatten() {
        let path = keyspace.path();
        // The first keyspace has the names of the others. Without it there is no database.
        if keyspace.file_name() == "0" || !path.join(CURRENT).exists() {
            continue;
        }
        match lsm_tree::Config::new(&path, Default::default(), Default::default()).open() {
            Ok(_) => is_any_sound = true,
            Err(error) => broken.push((keyspace.file_name(), path, error)),
        }
    }
    for (name, path, error) in broken {
        if !is_damage(&error, is_any_sound) {
            tracing::error!(path = %path.display(), %error, "files of a log cannot be read at the moment");
            continue;
        }
        let aside = damaged(folder).join(name);
        let moved = fs::create_dir_all(damaged(folder)).and_then(|()| fs::rename(&path, &aside));
        tracing::error!(path = %path.display(), aside = %aside.display(), %error, ?moved, "moved damaged files of a log aside");
    }
}

/// Whether the files are damaged, as opposed to a limit of the process, such as open files. If the disk fails to read
/// any file, the disk is at fault.
fn is_damage(error: &lsm_tree::Error, is_any_sound: bool) -> bool {
    use io::ErrorKind::{
        OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut,
    };
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let lsm_tree::Error::Io(error) = error else {
        return true;
    };
    match (error.raw_os_error(), error.kind()) {
        (Some(EIO), _) => is_any_sound,
        (Some(ENFILE | EMFILE), _) => false,
        (_, OutOfMemory | PermissionDenied | ReadOnlyFilesystem | StaleNetworkFileHandle | StorageFull | TimedOut) => {
            false
        }
        _ => true,
    }
}
