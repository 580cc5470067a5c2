//! The resources that a kernel's processes use.

use std::time::Duration;

use kernel_provider::Usage;

use super::stat::{Identity, Stat, all_pids};

/// Measures the processes of the leader's session. Returns `None` if the leader is gone. Blocks briefly.
pub(crate) fn of_session(leader: &Identity) -> Option<Usage> {
    if Stat::of(leader.pid)?.start_ticks != leader.start_ticks {
        return None;
    }
    let members = all_pids().into_iter().filter_map(Stat::of);
    let (mut ticks, mut pages) = (0, 0);
    for member in members.filter(|stat| stat.session == leader.pid) {
        ticks += member.cpu_ticks;
        pages += member.resident_pages;
    }
    let cpu = Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second());
    Some(Usage::new(cpu, pages * rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_of_a_process_is_measured() {
        // The leader of this process's session may be of another user, but its numbers can be read.
        let session = Stat::of(std::process::id() as i32).unwrap().session;
        let Some(leader) = Identity::of(session) else { return };
        let usage = of_session(&leader).unwrap();
        assert!(usage.memory > 0);
        let reused = Identity {
            start_ticks: leader.start_ticks + 1,
            ..leader
        };
        assert_eq!(of_session(&reused), None);
    }
}
