//! What a process costs, as Linux counts it.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;

/// The processor time that the process has taken so far, in user and system mode, all its threads together.
///
/// # Errors
/// Where there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold blanks; what is wanted is the 14th and 15th field.
    let (_, rest) = stat.rsplit_once(')').ok_or("a process's stat without its name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).ok_or("a short stat")?.parse()?) };
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

/// The processor time that this thread has taken so far: what work without waiting costs, whatever else the machine does.
#[must_use]
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How much memory the process holds, in bytes.
///
/// # Errors
/// Where there is no such process.
pub fn memory(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

/// The most that it held since [`forget_peak`], in bytes.
///
/// # Errors
/// Where there is no such process.
pub fn peak_memory(pid: u32) -> Result<u64> {
    status(pid, "VmHWM:")
}

/// Resets [`peak_memory`].
///
/// # Errors
/// Where the process is another user's.
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Many sockets need more open files than some shells allow at first: as many as this process may have.
///
/// # Errors
/// Where the system says no.
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
