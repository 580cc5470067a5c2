//! Copies this program into a folder, such as a volume that a kernel's container shares.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The program's name in the folder.
const NAME: &str = "kernelmux-agent";

/// Copies this program into the folder that the first argument names.
pub(crate) fn install(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(folder) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: kernelmux-agent install FOLDER");
        return ExitCode::from(2);
    };
    match copy_into(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "kernelmux-agent: cannot copy this program into {}: {error}",
                folder.display()
            );
            ExitCode::FAILURE
        }
    }
}

fn copy_into(folder: &Path) -> std::io::Result<()> {
    // Renamed when complete, so that an incomplete copy is never executed.
    let part = folder.join(format!("{NAME}.part"));
    // `copy` keeps the permissions.
    std::fs::copy(std::env::current_exe()?, &part)?;
    std::fs::rename(part, folder.join(NAME))
}
