//! Ending all that a kernel started: what is left of a session whose leader has ended.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::stat::{Identity, Stat, all_pids};

/// How long killed processes are waited for. Only one that hangs in the kernel (of the system) takes longer.
const LONGEST_DEATH: Duration = Duration::from_secs(2);

/// Kills every process of the leader's session and waits until they are gone.
///
/// The leader itself must have ended; best it is not reaped yet, as its number cannot come back then. Processes that
/// made a session of their own, as daemons do, are not touched. Blocks, at most for some seconds.
pub(crate) fn end(leader: &Identity) {
    let deadline = Instant::now() + LONGEST_DEATH;
    // Each round kills all that are there, which may have started others in the meantime.
    while Instant::now() < deadline {
        if Stat::of(leader.pid).is_some_and(|stat| stat.start_ticks != leader.start_ticks) {
            // The number has come back, so nothing of the old session was left.
            return;
        }
        let members: Vec<OwnedFd> = all_pids()
            .into_iter()
            .filter(|pid| *pid != leader.pid && is_alive_in(leader.pid, *pid))
            .filter_map(|pid| {
                let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                // Asked again with the descriptor at hand: the number cannot have come back before this.
                is_alive_in(leader.pid, pid).then_some(fd)
            })
            .collect();
        if members.is_empty() {
            return;
        }
        for member in &members {
            // One that ended just now is as good as killed; one of another user's cannot be.
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
