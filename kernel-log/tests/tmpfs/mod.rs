//! Small disks that tests can fill.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A mounted tmpfs, unmounted when dropped.
pub(crate) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts a tmpfs. If the system refuses, prints the reason and returns `None`.
    ///
    /// # Panics
    ///
    /// On CI, if the system refuses.
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "kernelmux-test"])
            .arg(folder.path())
            .output();
        let reason = match mounted {
            Ok(output) if output.status.success() => return Some(Self(folder)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "a tmpfs cannot be mounted: {reason}");
        eprintln!("skipped: a tmpfs cannot be mounted: {reason}");
        None
    }

    pub(crate) fn remount(&self, options: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let remounted = || {
            let status = Command::new("mount")
                .args(["-o", &format!("remount,{options}")])
                .arg(self.path())
                .status();
            status.unwrap().success()
        };
        // A process that another test forked may still have a file open.
        while !remounted() {
            assert!(Instant::now() < deadline, "cannot remount with {options}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
