//! Errors of connection files.

use std::io;
use std::path::PathBuf;

use super::MAX_CONNECTION_FILE;

/// Error of finding, reading or writing a connection file. Each message names the file or the requested name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionFileError {
    /// Reading the file failed.
    #[error(
        "cannot read connection file {path}: {source}; check that the kernel still runs and that the file is yours"
    )]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The path is a directory, a pipe or a device.
    #[error("{path} is not a regular file; give the path of a kernel's connection file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than [`MAX_CONNECTION_FILE`].
    #[error("{path} has more than {MAX_CONNECTION_FILE} bytes, so it is not a connection file; give another path")]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is not a JSON object, or a field has the wrong type. The error contains no value of the file.
    #[error("{path} is not a connection file: {problem}; give another path, or restart the kernel")]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong and where, without text of the file.
        problem: String,
    },
    /// The file lacks the shell or iopub port, and has no registration port (JEP 66).
    #[error("{path} has no {missing}: it is not the connection file of a running kernel; give another path")]
    MissingPort {
        /// Path of the file.
        path: PathBuf,
        /// Name of the first port that is absent or 0.
        missing: &'static str,
    },
    /// No file matches.
    #[error("no connection file matches {wanted:?} in {}; give another name, or the file's full path", searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound {
        /// The requested name, id or path.
        wanted: String,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// Writing the file failed.
    #[error("cannot write connection file {path}: {source}; check that the folder is yours and has free space")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}
