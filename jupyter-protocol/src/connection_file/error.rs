//! What can go wrong with a connection file.

use std::io;
use std::path::PathBuf;

use super::MAX_CONNECTION_FILE;

/// A connection file could not be found, read, understood or written. Each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionFileError {
    /// The system did not let it be read.
    #[error(
        "cannot read connection file {path}: {source}; check that the kernel still runs and that the file is yours"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The path is a directory or a device.
    #[error("{path} is not a regular file; give the path of a kernel's connection file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It is longer than [`MAX_CONNECTION_FILE`].
    #[error("{path} has more than {MAX_CONNECTION_FILE} bytes, so it is no connection file; give another path")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no JSON object, or a field has the wrong type. The error holds no value of the file.
    #[error("{path} is not a connection file: {problem}; give another path, or start the kernel again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and where, without the file's text.
        problem: String,
    },
    /// It names neither the shell and iopub ports nor a registration port (JEP 66).
    #[error("{path} names no {missing}: it is not the connection file of a running kernel; give another path")]
    MissingPort {
        /// The file.
        path: PathBuf,
        /// The first port that is absent or 0.
        missing: &'static str,
    },
    /// No file matches.
    #[error("no connection file matches {wanted:?} in {}; give another name, or the file's whole path", searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound {
        /// The name, id or path that was asked for.
        wanted: String,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The system did not let it be written.
    #[error("cannot write connection file {path}: {source}; check that the folder exists, is yours and has room")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}
