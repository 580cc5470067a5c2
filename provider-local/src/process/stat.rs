//! Process information from `/proc`.

use std::fs;

use serde::{Deserialize, Serialize};

/// Identifies a process. The start time and the boot id distinguish it from another process that gets the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The process id. For a process that [`Process::spawn`](super::Process::spawn) started, it is also the id of its
    /// session and group.
    pub(crate) pid: i32,
    /// Start time, in clock ticks since boot.
    pub(crate) start_ticks: u64,
    /// The boot id of the machine when the process started.
    pub(crate) boot: String,
}

impl Identity {
    /// Returns the identity of the process that has this id now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: Stat::of(pid)?.start_ticks,
            boot: boot_id(),
        })
    }
}

/// The relevant fields of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Field 4.
    pub(crate) parent: i32,
    /// Field 6.
    pub(crate) session: i32,
    /// Field 22.
    pub(crate) start_ticks: u64,
    /// CPU time of the process and of its children that have ended, in clock ticks (fields 14 to 17).
    pub(crate) cpu_ticks: u64,
    /// Resident memory in pages (field 24).
    pub(crate) resident_pages: u64,
    /// Whether the process has ended and not been reaped (field 3).
    pub(crate) is_zombie: bool,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses the file. The second field is the program's name in parentheses, which may contain spaces, parentheses
    /// and any bytes.
    fn parse(stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        // The first of these is field 3.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            is_zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
            cpu_ticks: fields
                .get(11..15)?
                .iter()
                .filter_map(|field| field.parse::<u64>().ok())
                .sum(),
            resident_pages: fields.get(21)?.parse().ok()?,
        })
    }
}

/// Returns the ids of all processes.
pub(crate) fn all_pids() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Finds the session leader whose command line contains this path.
pub(crate) fn find_by_argument(path: &std::path::Path) -> Option<Identity> {
    let wanted = path.as_os_str().as_encoded_bytes();
    all_pids()
        .into_iter()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|command_line| command_line.windows(wanted.len()).any(|window| window == wanted))
        })
        .find(|pid| Stat::of(*pid).is_some_and(|stat| stat.session == *pid))
        .and_then(Identity::of)
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_names_may_contain_anything() {
        let fields = "S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 1";
        for name in ["sleep", "a b", "x) R 1 2 3 (", ""] {
            let stat = Stat::parse(format!("42 ({name}) {fields}").as_bytes()).unwrap();
            assert_eq!(
                stat,
                Stat {
                    parent: 1,
                    session: 43,
                    start_ticks: 987_654,
                    cpu_ticks: 5 + 6 + 7 + 8,
                    resident_pages: 1,
                    is_zombie: false
                }
            );
        }
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b"1 (x) S 1 2"), None);
    }

    #[test]
    fn identities_are_stable_and_distinct() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(Identity::of(own).is_some() && Identity::of(own) == Identity::of(own));
        assert_ne!(Identity::of(own), Identity::of(1));
        assert_eq!(Identity::of(0), None);
    }
}
