//! Detection of the end of the process that started the kernel.
//!
//! Linux reports this end as an event of a process descriptor. Elsewhere, a thread checks once per second whether the
//! id of the parent process has changed.

use std::io::{self, PipeReader, PipeWriter};
use std::time::Duration;
use std::{env, process, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::process::{Pid, getppid};
use tokio::sync::oneshot;

/// Environment variable with the id of the process that started the kernel.
const VARIABLE: &str = "JPY_PARENT_PID";

/// How long the process may run after its parent has ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval between checks of the parent process's id.
const INTERVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The process whose end also ends the kernel, if there is one. Dropping this stops watching the process.
pub(super) struct Parent(Option<Watch>);

struct Watch {
    ended: oneshot::Receiver<()>,
    /// Closes when the watch is dropped, which ends the thread.
    _stop: PipeWriter,
}

impl Parent {
    /// Starts to watch the process that `JPY_PARENT_PID` specifies.
    ///
    /// A thread watches, not a task, so that a kernel that blocks its event loop ends, too.
    pub(super) fn watch() -> Self {
        let Some(watched) = watched(env::var(VARIABLE).ok().as_deref()) else {
            return Self(None);
        };
        match Watch::start(watched) {
            Ok(watch) => Self(Some(watch)),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the parent process; the kernel may outlive it");
                Self(None)
            }
        }
    }

    /// Waits for the end of the watched process. Never completes if there is none.
    ///
    /// [`EXIT_TIMEOUT`] after that end, a thread exits this process.
    pub(super) async fn ended(self) {
        if let Some(watch) = self.0
            && watch.ended.await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Watch {
    fn start(watched: Watched) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let (report, ended) = oneshot::channel();
        thread::Builder::new().name("kernel-parent".to_owned()).spawn(move || {
            if watched.wait(&stopped) && report.send(()).is_ok() {
                thread::sleep(EXIT_TIMEOUT);
                process::exit(1);
            }
        })?;
        Ok(Self { ended, _stop: stop })
    }
}

/// What to watch.
enum Watched {
    /// The process of a descriptor.
    #[cfg(target_os = "linux")]
    Process(OwnedFd),
    /// The parent of this process, which has this id until it ends.
    Parent(Pid),
    /// Nothing: the process has already ended.
    Ended,
}

impl Watched {
    /// Blocks until the process has ended, and returns `true`. Returns `false` on an error, or if `stopped` closes
    /// first.
    fn wait(self, stopped: &PipeReader) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Process(process) => loop {
                let mut fds = [
                    PollFd::new(&process, PollFlags::IN),
                    PollFd::new(stopped, PollFlags::IN),
                ];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[1].revents().is_empty() => return false,
                    Ok(_) if !fds[0].revents().is_empty() => return true,
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return false,
                }
            },
            Self::Parent(parent) => loop {
                if getppid() != Some(parent) {
                    return true;
                }
                match poll(
                    &mut [PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)],
                    Some(&INTERVAL),
                ) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => {}
                    _ => return false,
                }
            },
            Self::Ended => true,
        }
    }
}

/// Returns what to watch for this value of `JPY_PARENT_PID`, or `None` if the kernel may outlive its parent.
fn watched(variable: Option<&str>) -> Option<Watched> {
    let named = Pid::from_raw(variable?.trim().parse().ok()?)?;
    let parent = getppid()?;
    if named.is_init() || parent.is_init() {
        return None;
    }
    #[cfg(target_os = "linux")]
    {
        let watched = if is_ancestor(named) { named } else { parent };
        if let Ok(process) = rustix::process::pidfd_open(watched, rustix::process::PidfdFlags::empty()) {
            // A process that is no longer an ancestor has ended, and the descriptor may refer to another process with
            // the same id.
            return Some(if is_ancestor(watched) {
                Watched::Process(process)
            } else {
                Watched::Ended
            });
        }
    }
    Some(Watched::Parent(parent))
}

/// Returns whether a process started this one, directly or through others.
#[cfg(target_os = "linux")]
fn is_ancestor(process: Pid) -> bool {
    let ancestors = std::iter::successors(getppid(), |ancestor| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", ancestor.as_raw_nonzero())).ok()?;
        parent_in_stat(&stat)
    });
    // Limited, because ids that are reused while they are read could form a cycle.
    ancestors.take(1_000).any(|ancestor| ancestor == process)
}

/// Returns the id of the parent from a `/proc/…/stat`: the second field after the name, which is in parentheses and may
/// contain spaces and parentheses.
#[cfg(target_os = "linux")]
fn parent_in_stat(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_ascii_whitespace().nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_watched_without_a_valid_process_id_other_than_1() {
        for variable in [None, Some(""), Some("0"), Some("1"), Some("x"), Some("99999999999")] {
            assert!(watched(variable).is_none(), "{variable:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_parent_is_found_in_the_stat_of_a_process_with_any_name() {
        let parent = |stat| parent_in_stat(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(parent("42 (sh) S 7 42 42 0 -1"), Some(7));
        assert_eq!(parent("42 (a) S 1) R 8 42 42 0 -1"), Some(8));
        assert_eq!(parent("1 (init) S 0 1 1 0 -1"), None);
        assert_eq!(parent("42 (sh"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn parents_are_ancestors_and_the_process_itself_is_not() {
        assert!(is_ancestor(getppid().unwrap()));
        assert!(!is_ancestor(rustix::process::getpid()));
    }

    #[test]
    fn a_dropped_watch_ends_its_thread() {
        let (stopped, stop) = io::pipe().unwrap();
        let parent = getppid().unwrap();
        let waits = thread::spawn(move || Watched::Parent(parent).wait(&stopped));
        drop(stop);
        assert!(!waits.join().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_end_of_a_process_is_detected() {
        let mut child = process::Command::new("cat")
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let (stopped, _stop) = io::pipe().unwrap();
        let waits = thread::spawn(move || Watched::Process(fd).wait(&stopped));
        // `cat` ends at the end of its input.
        drop(child.stdin.take());
        assert!(waits.join().unwrap());
        child.wait().unwrap();
    }
}
