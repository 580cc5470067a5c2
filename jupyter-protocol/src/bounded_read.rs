//! Reading of small untrusted files with a size limit.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Error of [`read_limited`].
#[derive(Debug)]
pub(crate) enum ReadError {
    /// Error of the system.
    Io(io::Error),
    /// The path is not a regular file but a directory, a pipe or a device.
    NotAFile,
    /// The file exceeds the limit.
    TooLarge,
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    // Checked before opening: opening a pipe waits for a writer.
    if !std::fs::metadata(path).map_err(ReadError::Io)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let file = File::open(path).map_err(ReadError::Io)?;
    let mut bytes = Vec::new();
    // The length in the metadata may be outdated, so the reader itself enforces the limit.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge);
    }
    Ok(bytes)
}
