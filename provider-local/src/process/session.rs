//! Kills the remaining processes of a session whose leader has ended.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::stat::{Identity, Stat, all_pids};

/// How long to wait for killed processes. Only a process stuck in a system call takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Kills every process of the leader's session and waits until they are gone. Blocks for at most a few seconds.
///
/// The leader must have ended or been killed. It should not be reaped yet, so that its id is not reused. Processes that
/// have started their own session, as daemons do, are not affected.
pub(crate) fn kill_members(leader: &Identity) {
    let deadline = Instant::now() + KILL_TIMEOUT;
    // Each round kills all processes found; those may have started others before they died.
    while Instant::now() < deadline {
        if Stat::of(leader.pid).is_some_and(|stat| stat.start_ticks != leader.start_ticks) {
            // The id was reused, so the old session has no processes left.
            return;
        }
        let members: Vec<OwnedFd> = all_pids()
            .into_iter()
            .filter(|pid| *pid != leader.pid && is_alive_in(leader.pid, *pid))
            .filter_map(|pid| {
                let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                // Checked again after opening the pidfd, because the id may have been reused before that.
                is_alive_in(leader.pid, pid).then_some(fd)
            })
            .collect();
        if members.is_empty() {
            return;
        }
        for member in &members {
            // The process may have ended just now. A process of another user cannot be killed.
            let _ = pidfd_send_signal(member, Signal::KILL);
        }
        for member in &members {
            wait_until(member, deadline);
        }
    }
}

fn is_alive_in(session: i32, pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.session == session && !stat.is_zombie)
}

fn wait_until(process: &OwnedFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    if let Ok(timeout) = Timespec::try_from(left) {
        let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout));
    }
}
