//! Telling a kernel that ran out of memory from one that somebody killed.
//!
//! Both die of SIGKILL. The system counts how many processes it has killed for want of memory: for the control group
//! that a kernel shares with this process, or, where that count cannot be read, for the whole machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The system's count, and how much of it has been laid to kernels.
pub(crate) struct OomCounter {
    file: PathBuf,
    seen: Mutex<u64>,
}

impl OomCounter {
    /// Counts from now on.
    pub(crate) fn new() -> Self {
        let file = counter_file().unwrap_or_else(|| PathBuf::from("/proc/vmstat"));
        let seen = Mutex::new(read_count(&file).unwrap_or(0));
        Self { file, seen }
    }

    /// Whether a process that was killed just now is one that the system has counted. Each count is given away once.
    pub(crate) fn claim(&self) -> bool {
        let Some(count) = read_count(&self.file) else {
            return false;
        };
        let mut seen = crate::lock(&self.seen);
        let is_new = count > *seen;
        if is_new {
            *seen += 1;
        }
        is_new
    }
}

fn counter_file() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        let file = if controllers.is_empty() {
            Path::new("/sys/fs/cgroup").join(path).join("memory.events")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            Path::new("/sys/fs/cgroup/memory").join(path).join("memory.oom_control")
        } else {
            return None;
        };
        read_count(&file).is_some().then_some(file)
    })
}

/// The three files have the same line, `oom_kill N`.
fn read_count(file: &Path) -> Option<u64> {
    fs::read_to_string(file)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_is_given_away_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\noom 1\noom_kill 3\noom_group_kill 0\n").unwrap();
        let counter = OomCounter {
            seen: Mutex::new(read_count(&file).unwrap()),
            file: file.clone(),
        };
        assert!(!counter.claim());
        fs::write(&file, "oom_kill 5\n").unwrap();
        assert!(counter.claim() && counter.claim() && !counter.claim());
        fs::remove_file(&file).unwrap();
        assert!(!counter.claim());
    }
}
