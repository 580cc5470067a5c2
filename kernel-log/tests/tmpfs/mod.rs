//! Small disks that can be full.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A mounted tmpfs, unmounted when dropped.
pub(crate) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, said on stderr, where this process may not mount one; that fails on CI.
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "kernelmux-test"])
            .arg(folder.path())
            .output();
        let said = match mounted {
            Ok(output) if output.status.success() => return Some(Self(folder)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "a tmpfs cannot be mounted: {said}");
        eprintln!("skipped: a tmpfs cannot be mounted: {said}");
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
        // A file may be open for a moment still in a process that another test has forked, or in a thread of fjall's.
        while !remounted() {
            assert!(Instant::now() < deadline, "remount {options}");
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
