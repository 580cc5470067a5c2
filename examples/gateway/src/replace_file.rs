use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use uuid::Uuid;

/// Replaces the file as a whole, readable for this user only.
pub(crate) fn replace_file(file: &Path, content: &[u8]) -> io::Result<()> {
    let new = file.with_extension(format!("{}.new", Uuid::new_v4().simple()));
    let written = write_new(&new, content).and_then(|()| std::fs::rename(&new, file));
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

fn write_new(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut out: File = options.write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(content)?;
    out.sync_all()
}
