//! What a kernel writes to its standard output and error: a file, so that it outlives the embedder.
//!
//! A pipe would end with the embedder, and the kernel with the pipe. A file has no bound of its own: while an
//! embedder watches the kernel, it gives the beginning of a long file back to the file system (a hole, so that the end
//! stays where it is and not a byte is lost), and after the kernel's end it keeps the end alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// The most that is read of a kernel's output, in bytes.
pub(crate) const TAIL: u64 = 64 * 1024;
/// The most that is put into an error or an [`Exit`](kernel_provider::provider::Exit), in bytes.
pub(crate) const EVIDENCE: u64 = 8 * 1024;
/// A file is cut once it has this many bytes more than are [kept](KEPT).
const SLACK: u64 = 1024 * 1024;
/// How much of a file is kept when it is cut, in bytes.
const KEPT: u64 = 1024 * 1024;

/// Makes the file, for this user only, and opens it so that everyone who writes writes at its end.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// How long the file is now, in bytes; 0 where there is none.
pub(crate) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The end of what comes after the first `from` bytes of the file, at most `limit` bytes of it. What is no UTF-8
/// becomes replacement characters.
pub(crate) fn tail(path: &Path, from: u64, limit: u64) -> io::Result<String> {
    let bytes = tail_bytes(path, from, limit)?;
    // The beginning may be a hole, or the rest of a character that was cut in two.
    let start = bytes
        .iter()
        .position(|byte| *byte != 0 && (*byte & 0xC0) != 0x80)
        .unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
}

fn tail_bytes(path: &Path, from: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A file that became shorter was emptied.
    let from = if from > length { 0 } else { from };
    file.seek(SeekFrom::Start(length.saturating_sub(limit).max(from)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps a running kernel's file bounded.
#[derive(Debug, Default)]
pub(crate) struct Trimmer {
    /// Where the hole at the file's beginning ends.
    hole: u64,
}

impl Trimmer {
    /// Cuts the file if it has become long. Blocks shortly.
    ///
    /// Where the file system cannot make holes, the file is emptied.
    pub(crate) fn trim(&mut self, path: &Path) -> io::Result<()> {
        let length = std::fs::metadata(path)?.len();
        if length < self.hole {
            self.hole = 0;
        }
        if length - self.hole <= KEPT + SLACK {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(path)?;
        let hole = length - KEPT;
        if fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, hole).is_ok() {
            self.hole = hole;
        } else {
            file.set_len(0)?;
            self.hole = 0;
        }
        Ok(())
    }
}

/// Keeps the end alone of the file of a kernel that is gone.
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
    fn a_long_output_is_bounded_on_disk_and_loses_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut file = create(&path).unwrap();
        let mut trimmer = Trimmer::default();
        for round in 0..20 {
            file.write_all(&vec![b'x'; 500_000]).unwrap();
            file.write_all(format!("\nround {round}\n").as_bytes()).unwrap();
            trimmer.trim(&path).unwrap();
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 <= KEPT + SLACK + 600_000);
            assert!(tail(&path, 0, TAIL).unwrap().ends_with(&format!("\nround {round}\n")));
        }
        compact(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), KEPT);
        assert!(tail(&path, 0, 100).unwrap().ends_with("\nround 19\n"));
    }

    #[test]
    fn holes_and_halves_of_characters_are_left_out() {
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
