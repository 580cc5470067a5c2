use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Replaces the file as a whole. A link stays, and its target is replaced. The file keeps its owner, group and mode; a
/// new one is readable for this user only.
///
/// # Errors
/// If the file cannot be written, or this user may not give it to its owner and group.
pub(crate) fn replace_file(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = &target(file)?;
    let new = file.with_extension(format!("{}.new", Uuid::new_v4().simple()));
    let written = write_new(&new, content, file).and_then(|()| std::fs::rename(&new, file));
    if written.is_err() {
        // It may not exist.
        let _ = std::fs::remove_file(&new);
    }
    written?;
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The path without links, or the path itself if there is no file.
pub(crate) fn target(file: &Path) -> io::Result<PathBuf> {
    match file.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file.to_owned()),
        found => found,
    }
}

fn write_new(file: &Path, content: &[u8], replaced: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut out: File = options.write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(content)?;
    match replaced.metadata() {
        Ok(before) => {
            give_to_owner(&out, &before)?;
            out.set_permissions(before.permissions())?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    out.sync_all()
}

/// Gives a file to the owner and group of another one.
pub(crate) fn give_to_owner(file: &File, of: &Metadata) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (of.uid(), of.gid()) {
        return Ok(());
    }
    fchown(file, Some(of.uid()), Some(of.gid()))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_links_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        replace_file(&real, b"1").unwrap();
        assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o600);
        symlink("real", &link).unwrap();
        std::fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        // Only root may do this.
        let is_given = chown(&real, Some(12_345), Some(54_321)).is_ok();
        replace_file(&link, b"2").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"2");
        let now = real.metadata().unwrap();
        assert_eq!(now.mode() & 0o777, 0o640);
        if is_given {
            assert_eq!((now.uid(), now.gid()), (12_345, 54_321));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
