//! Reading small files that others wrote.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Why a file could not be read whole.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The system's answer.
    Io(io::Error),
    /// It is a directory, a pipe, a device, ...
    NotAFile,
    /// It is longer than the limit.
    TooLarge,
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    // Opening a pipe would wait for a writer, so look before.
    if !std::fs::metadata(path).map_err(ReadError::Io)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let file = File::open(path).map_err(ReadError::Io)?;
    let mut bytes = Vec::new();
    // The length may change while reading, so it is no guide: the reader itself ends at the limit.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge);
    }
    Ok(bytes)
}
