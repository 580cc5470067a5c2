//! A kernel's standard output and error through a pipe, which this program copies to the kernel's output file.
//!
//! This program writes the file, so it can bound the file without a file system watcher. A user may have only 128
//! watchers. The kernel's writes fail once this program has ended, so only agents use pipes, because an agent's kernel
//! ends with it.

use std::fs::File;
use std::io::{self, PipeWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionbio, read};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use crate::output::{self, Trimmer};

/// How many bytes are read at once.
const CHUNK: usize = 16 << 10;
/// How many chunks are copied before other tasks run. Together they are as large as a full pipe, whose capacity is at
/// most 1 MiB unless the program that sets it is privileged.
const CHUNKS: usize = 64;

/// The reading end of a kernel's output.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    pipe: AsyncFd<OwnedFd>,
    output: Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    file: File,
    trimmer: Trimmer,
    /// Whether the last bytes could not be written.
    has_failed: bool,
}

/// Whether the pipe may have more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// More bytes may be available.
    Some,
    /// The pipe is empty.
    All,
    /// All processes have closed the pipe.
    UntilEnd,
}

impl OutputPipe {
    /// Creates a pipe whose bytes are appended to this file. Must be called in a tokio runtime with I/O enabled.
    pub(crate) fn create(path: &Path) -> io::Result<(Arc<Self>, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let reader = OwnedFd::from(reader);
        ioctl_fionbio(&reader, true)?;
        let output = Output {
            file: output::create(path)?,
            trimmer: Trimmer::default(),
            has_failed: false,
        };
        let pipe = Self {
            pipe: crate::readable(reader)?,
            output: Mutex::new(output),
        };
        Ok((Arc::new(pipe), writer))
    }

    /// Copies until all processes have closed the pipe.
    pub(crate) async fn copy(self: Arc<Self>) {
        // Fails only if the runtime is shutting down.
        while let Ok(mut ready) = self.pipe.readable().await {
            match self.copy_available() {
                Copied::Some => yield_now().await,
                Copied::All => ready.clear_ready(),
                Copied::UntilEnd => return,
            }
        }
    }

    /// Copies what the pipe contains. Blocks briefly.
    pub(crate) fn drain(&self) {
        self.copy_available();
    }

    fn copy_available(&self) -> Copied {
        let mut output = crate::lock(&self.output);
        let mut buffer = [0; CHUNK];
        for _ in 0..CHUNKS {
            match read(self.pipe.get_ref(), &mut buffer) {
                Ok(0) => return Copied::UntilEnd,
                Ok(length) => output.write(&buffer[..length]),
                Err(Errno::INTR) => {}
                // `WOULDBLOCK`. No other error is possible for a pipe.
                Err(_) => return Copied::All,
            }
        }
        Copied::Some
    }
}

impl Output {
    /// Writes the bytes to the file. If that fails, drops them, because a full pipe would block the kernel.
    fn write(&mut self, bytes: &[u8]) {
        let written = self.file.write_all(bytes).and_then(|()| self.trimmer.trim(&self.file));
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::warn!(%error, "a part of the kernel's output cannot be stored");
        }
        self.has_failed = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn the_file_is_bounded_and_has_the_end_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let (pipe, mut writer) = OutputPipe::create(&path).unwrap();
        let copying = tokio::spawn(pipe.copy());
        let writing = tokio::task::spawn_blocking(move || {
            for number in 0..40 {
                writer.write_all(&vec![b'x'; 500_000]).unwrap();
                writer.write_all(format!("\nround {number}\n").as_bytes()).unwrap();
            }
        });
        writing.await.unwrap();
        copying.await.unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 <= 3 << 20);
        assert!(output::tail(&path, 0, 100).unwrap().ends_with("\nround 39\n"));
    }

    #[tokio::test]
    async fn draining_copies_everything_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let (pipe, mut writer) = OutputPipe::create(&path).unwrap();
        writer.write_all(&[b'x'; 60_000]).unwrap();
        pipe.drain();
        assert_eq!(output::length(&path), 60_000);
    }
}
