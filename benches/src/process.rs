//! CPU time and memory of a process, from Linux's counters.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;

/// User and system CPU time that all threads of a process have used so far.
///
/// # Errors
/// If there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain blanks. User and system time are the 14th and 15th fields.
    let (_, rest) = stat.rsplit_once(')').ok_or("the process's stat has no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> {
        Ok(fields
            .get(index)
            .ok_or("the process's stat has too few fields")?
            .parse()?)
    };
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

/// CPU time that this thread has used so far. Unlike elapsed time, it does not grow while the thread waits.
#[must_use]
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// If there is no such process.
pub fn memory(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

/// Resident anonymous memory of a process, which no file backs, in bytes.
///
/// # Errors
/// If there is no such process.
pub fn own_memory(pid: u32) -> Result<u64> {
    status(pid, "RssAnon:")
}

/// Peak resident memory of a process since [`reset_peak_memory`], in bytes.
///
/// # Errors
/// If there is no such process.
pub fn peak_memory(pid: u32) -> Result<u64> {
    status(pid, "VmHWM:")
}

/// Resets the peak for [`peak_memory`] to the current resident memory.
///
/// # Errors
/// If the process belongs to another user.
pub fn reset_peak_memory(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Raises the limit on open files to its maximum, because the default of some shells is too low for many sockets.
///
/// # Errors
/// If the system refuses.
pub fn allow_open_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?)
}

fn status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .ok_or("no such field")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no value")?.parse()?;
    Ok(kilobytes << 10)
}
