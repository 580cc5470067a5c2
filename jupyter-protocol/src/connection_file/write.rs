use std::io::{self, Write as _};
use std::path::Path;

use super::{ConnectionFileError, ConnectionInfo};

impl ConnectionInfo {
    /// Atomically writes a connection file that only this user can read (mode 0600).
    ///
    /// Writes a temporary file in the same folder and renames it, so readers never see a partial file. Creates missing
    /// folders, for this user only. Blocks on the file system. Not available in WebAssembly.
    ///
    /// # Errors
    /// [`ConnectionFileError::Write`] if writing fails.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ConnectionFileError> {
        let path = path.as_ref();
        self.write_atomically(path)
            .map_err(|source| ConnectionFileError::Write {
                path: path.to_owned(),
                source,
            })
    }

    fn write_atomically(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        create_private_dir(folder)?;
        // On Unix a temporary file has mode 0600 from the start. Elsewhere it inherits the access rights of the folder.
        let mut file = tempfile::Builder::new()
            .prefix(".connection-")
            .suffix(".tmp")
            .tempfile_in(folder)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.persist(path)?;
        Ok(())
    }
}

fn create_private_dir(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
