//! Telling a kernel that ran out of memory from one that somebody killed.
//!
//! Both die of SIGKILL. The system counts how many processes it has killed for want of memory: for the control group
//! that a kernel shares with this process, or, where that count cannot be read, for the whole machine.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::inotify::WatchFlags;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::events::Events;

/// How long after the system has killed something a kernel's death may be that.
const FRESH: Duration = Duration::from_secs(5);
/// How often the count is looked at where no event tells that it has changed.
const PAUSE: Duration = Duration::from_secs(5);

/// The system's count of processes that it has killed for want of memory.
pub(crate) struct OomCounter {
    file: PathBuf,
    kills: Mutex<Kills>,
}

/// Which of the kills a kernel may still have died of.
struct Kills {
    /// So many are a kernel's already, or too old to be one's.
    gone: u64,
    /// When the count was seen to have become what.
    seen: VecDeque<(Instant, u64)>,
}

impl Kills {
    fn note(&mut self, count: u64) {
        if count > self.seen.back().map_or(self.gone, |(_, last)| *last) {
            self.seen.push_back((Instant::now(), count));
        }
        while let Some((when, count)) = self.seen.front()
            && when.elapsed() > FRESH
        {
            self.gone = self.gone.max(*count);
            self.seen.pop_front();
        }
    }
}

impl OomCounter {
    /// Counts from now on.
    pub(crate) fn new() -> Self {
        Self::of(counter_file().unwrap_or_else(|| PathBuf::from("/proc/vmstat")))
    }

    fn of(file: PathBuf) -> Self {
        let kills = Mutex::new(Kills {
            gone: read_count(&file).unwrap_or(0),
            seen: VecDeque::new(),
        });
        Self { file, kills }
    }

    /// Whether a process that was killed just now may be one that the system has counted just now. Each count is given
    /// away once.
    pub(crate) fn claim(&self) -> bool {
        let Some(count) = read_count(&self.file) else {
            return false;
        };
        let mut kills = crate::lock(&self.kills);
        kills.note(count);
        let is_new = count > kills.gone;
        if is_new {
            kills.gone += 1;
        }
        is_new
    }

    /// Keeps track of when the count changes, so that nobody claims what is long past. The file of a control group of
    /// version 2 tells; the others are looked at.
    pub(crate) async fn follow(self: Arc<Self>, events: Arc<Events>) {
        let changed = Arc::new(Notify::new());
        let tells = self.file.ends_with("memory.events");
        let watch = tells.then(|| events.watch(&self.file, None, WatchFlags::MODIFY, &changed));
        let is_watched = matches!(watch, Some(Ok(_)));
        loop {
            if is_watched {
                changed.notified().await;
            } else {
                sleep(PAUSE).await;
            }
            if let Some(count) = read_count(&self.file) {
                crate::lock(&self.kills).note(count);
            }
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

    #[tokio::test(start_paused = true)]
    async fn each_count_is_given_away_once_and_soon() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\noom 1\noom_kill 3\noom_group_kill 0\n").unwrap();
        let counter = OomCounter::of(file.clone());
        assert!(!counter.claim());
        fs::write(&file, "oom_kill 5\n").unwrap();
        assert!(counter.claim() && counter.claim() && !counter.claim());
        fs::write(&file, "oom_kill 7\n").unwrap();
        assert!(counter.claim());
        tokio::time::advance(FRESH * 2).await;
        fs::write(&file, "oom_kill 8\n").unwrap();
        assert!(counter.claim() && !counter.claim());
        fs::remove_file(&file).unwrap();
        assert!(!counter.claim());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_killed_long_ago_was_no_kernel() {
        let dir = tempfile::tempdir().unwrap();
        // One tells of its changes, the other does not.
        for name in ["memory.events", "vmstat"] {
            let file = dir.path().join(name);
            fs::write(&file, "oom_kill 0\n").unwrap();
            let counter = Arc::new(OomCounter::of(file.clone()));
            let following = tokio::spawn(Arc::clone(&counter).follow(Arc::new(Events::new().unwrap())));
            tokio::task::yield_now().await;
            fs::write(&file, "oom_kill 1\n").unwrap();
            let noted = || crate::lock(&counter.kills).seen.len() == 1;
            while !noted() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tokio::time::advance(FRESH * 2).await;
            assert!(!counter.claim(), "{name}");
            following.abort();
        }
    }
}
