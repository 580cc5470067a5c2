//! A kernel's standard output and error, which go to a file.
//!
//! With a pipe, the kernel would fail to write once the reading program ends, so only agents use pipes
//! (`output_pipe.rs`). A file stays writable, but would grow without limit. So while a provider watches the kernel, the
//! provider punches a hole over the beginning of a long file, which frees the space and keeps all offsets. After the
//! kernel has ended, only the end of the file is kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// Maximum number of bytes read from a kernel's output.
pub(crate) const TAIL: u64 = 64 * 1024;
/// Maximum number of output bytes in an error or an [`Exit`](kernel_provider::Exit).
pub(crate) const ERROR_TAIL: u64 = 8 * 1024;
/// A file is cut once it exceeds [`KEPT`] by this many bytes.
const SLACK: u64 = 1024 * 1024;
/// Number of bytes kept when a file is cut.
const KEPT: u64 = 1024 * 1024;

/// Creates the file, accessible to this user only, and opens it for appending.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Returns the file's length in bytes, or 0 if there is no file.
pub(crate) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Reads the file's end: at most its last `limit` bytes, without the first `from` bytes of the file.
///
/// Invalid UTF-8 is replaced with replacement characters.
pub(crate) fn tail(path: &Path, from: u64, limit: u64) -> io::Result<String> {
    let bytes = tail_bytes(path, from, limit)?;
    // Skip bytes of the hole, and the rest of a character that was cut.
    let start = bytes
        .iter()
        .position(|byte| *byte != 0 && (*byte & 0xC0) != 0x80)
        .unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
}

fn tail_bytes(path: &Path, from: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A file that is shorter than before was emptied.
    let from = if from > length { 0 } else { from };
    file.seek(SeekFrom::Start(length.saturating_sub(limit).max(from)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps a running kernel's output file bounded.
#[derive(Debug, Default)]
pub(crate) struct Trimmer {
    /// End of the hole at the file's beginning.
    hole: u64,
}

impl Trimmer {
    /// Cuts the file, which is open for writing, if it has become long. Blocks briefly.
    ///
    /// On file systems that cannot punch holes, the file is emptied.
    pub(crate) fn trim(&mut self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        if length < self.hole {
            self.hole = 0;
        }
        if length - self.hole <= KEPT + SLACK {
            return Ok(());
        }
        let hole = length - KEPT;
        if fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, hole).is_ok() {
            self.hole = hole;
        } else {
            file.set_len(0)?;
            self.hole = 0;
        }
        Ok(())
    }
}

/// Reduces an ended kernel's file to its last [`KEPT`] bytes.
pub(crate) fn compact(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.len() <= KEPT {
        return Ok(());
    }
    let end = tail_bytes(path, 0, KEPT)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&end)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn long_output_is_bounded_on_disk_and_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut file = create(&path).unwrap();
        let mut trimmer = Trimmer::default();
        for round in 0..20 {
            file.write_all(&vec![b'x'; 500_000]).unwrap();
            file.write_all(format!("\nround {round}\n").as_bytes()).unwrap();
            trimmer.trim(&file).unwrap();
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 <= KEPT + SLACK + 600_000);
            assert!(tail(&path, 0, TAIL).unwrap().ends_with(&format!("\nround {round}\n")));
        }
        compact(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), KEPT);
        assert!(tail(&path, 0, 100).unwrap().ends_with("\nround 19\n"));
    }

    #[test]
    fn holes_and_cut_characters_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        std::fs::write(&path, "aä\u{10ffff}é").unwrap();
        assert_eq!(tail(&path, 0, 100).unwrap(), "aä\u{10ffff}é");
        assert_eq!(tail(&path, 0, 4).unwrap(), "é");
        assert_eq!(tail(&path, 7, 100).unwrap(), "é");
        assert_eq!(tail(&path, 99, 100).unwrap(), "aä\u{10ffff}é");
        std::fs::write(&path, b"\0\0\0b\xff").unwrap();
        assert_eq!(tail(&path, 0, 100).unwrap(), "b\u{fffd}");
        std::fs::write(&path, "").unwrap();
        assert_eq!(tail(&path, 0, 100).unwrap(), "");
    }
}
