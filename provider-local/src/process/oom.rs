//! Distinguishes kernels killed by the out-of-memory killer from those killed by a user or another program.
//!
//! Both end by SIGKILL. The system counts its out-of-memory kills: for the control group that kernels share with this
//! process, or for the whole machine if the group's count cannot be read.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

/// Maximum time between an out-of-memory kill and the end of a kernel to which the kill is attributed.
const CLAIM_WINDOW: Duration = Duration::from_secs(5);
/// Polling interval for counters without change events.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The system's count of out-of-memory kills.
pub(crate) struct OomCounter {
    file: PathBuf,
    kills: Mutex<RecentKills>,
}

/// The out-of-memory kills that may still be attributed to a kernel.
struct RecentKills {
    /// Value of the count up to which each kill was attributed to a kernel or is too old.
    claimed: u64,
    /// When the count was first seen at each value.
    seen: VecDeque<(Instant, u64)>,
}

impl RecentKills {
    fn record(&mut self, count: u64) {
        if count > self.seen.back().map_or(self.claimed, |(_, last)| *last) {
            self.seen.push_back((Instant::now(), count));
        }
        while let Some((when, count)) = self.seen.front()
            && when.elapsed() > CLAIM_WINDOW
        {
            self.claimed = self.claimed.max(*count);
            self.seen.pop_front();
        }
    }
}

impl OomCounter {
    /// Starts counting at the current value.
    pub(crate) fn new() -> Self {
        Self::with_file(counter_file().unwrap_or_else(|| PathBuf::from("/proc/vmstat")))
    }

    fn with_file(file: PathBuf) -> Self {
        let kills = Mutex::new(RecentKills {
            claimed: read_count(&file).unwrap_or(0),
            seen: VecDeque::new(),
        });
        Self { file, kills }
    }

    /// Whether the death of a process that was just killed can be attributed to a recent out-of-memory kill. Each kill
    /// is attributed once.
    pub(crate) fn claim(&self) -> bool {
        let Some(count) = read_count(&self.file) else {
            return false;
        };
        let mut kills = crate::lock(&self.kills);
        kills.record(count);
        let is_new = count > kills.claimed;
        if is_new {
            kills.claimed += 1;
        }
        is_new
    }

    /// Tracks when the count changes, so that old kills are not attributed to new deaths. Never returns.
    ///
    /// A version 2 control group's file reports changes by events. Other files are polled.
    pub(crate) async fn follow(self: Arc<Self>) {
        let has_events = self.file.ends_with("memory.events");
        let events = has_events.then(|| CountEvents::open(&self.file));
        loop {
            match &events {
                Some(Ok(events)) => events.changed().await,
                _ => sleep(POLL_INTERVAL).await,
            }
            if let Some(count) = read_count(&self.file) {
                crate::lock(&self.kills).record(count);
            }
        }
    }
}

/// The events of the file of a version 2 control group.
struct CountEvents(AsyncFd<OwnedFd>);

impl CountEvents {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(crate::with_interest(
            File::open(path)?.into(),
            Interest::PRIORITY,
        )?))
    }

    /// Waits until the count has changed since the last call.
    async fn changed(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => {
                ready.clear_ready();
                // Reading the file through this descriptor re-arms its event.
                let _ = rustix::io::pread(self.0.get_ref(), &mut [0], 0);
            }
            // The runtime is shutting down.
            Err(_) => std::future::pending().await,
        }
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

/// Reads the line `oom_kill N`, which `memory.events`, `memory.oom_control` and `/proc/vmstat` have in common.
fn read_count(file: &Path) -> Option<u64> {
    fs::read_to_string(file)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_recent_kill_is_attributed_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\noom 1\noom_kill 3\noom_group_kill 0\n").unwrap();
        let counter = OomCounter::with_file(file.clone());
        assert!(!counter.claim());
        fs::write(&file, "oom_kill 5\n").unwrap();
        assert!(counter.claim() && counter.claim() && !counter.claim());
        fs::write(&file, "oom_kill 7\n").unwrap();
        assert!(counter.claim());
        tokio::time::advance(CLAIM_WINDOW * 2).await;
        fs::write(&file, "oom_kill 8\n").unwrap();
        assert!(counter.claim() && !counter.claim());
        fs::remove_file(&file).unwrap();
        assert!(!counter.claim());
    }

    #[tokio::test(start_paused = true)]
    async fn old_kills_are_not_attributed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmstat");
        fs::write(&file, "oom_kill 0\n").unwrap();
        let counter = Arc::new(OomCounter::with_file(file.clone()));
        let following = tokio::spawn(Arc::clone(&counter).follow());
        tokio::task::yield_now().await;
        fs::write(&file, "oom_kill 1\n").unwrap();
        let is_recorded = || crate::lock(&counter.kills).seen.len() == 1;
        while !is_recorded() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::advance(CLAIM_WINDOW * 2).await;
        assert!(!counter.claim());
        following.abort();
    }
}
