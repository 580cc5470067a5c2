//! A process that leads a session of its own, watched through a pidfd.
//!
//! A pidfd is an event for the end of a process whether it is a child of this one or was started by another that is
//! dead by now; and it never means another process, as a number may.

pub(crate) mod oom;
pub(crate) mod orphans;
pub(crate) mod session;
pub(crate) mod stat;

use std::io;
use std::process::Command;

use process_wrap::std::{CommandWrap, ProcessSession};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use stat::Identity;

/// A running process, or one that has ended and was not forgotten yet.
#[derive(Debug)]
pub(crate) struct Process {
    identity: Identity,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// The system tells only a process's parent, and this is not it.
    NotTold,
}

impl Process {
    /// Starts a program as the leader of a new session and process group. Blocks until it runs or could not be run.
    ///
    /// The caller owns the process: nothing ends it when this is dropped.
    pub(crate) fn spawn(command: Command) -> io::Result<Self> {
        // The session keeps terminal signals and hang-ups of the embedder's terminal away from the kernel, and the
        // kernel from that terminal.
        let pid = orphans::start(
            || {
                let child = CommandWrap::from(command).wrap(ProcessSession).spawn()?;
                i32::try_from(child.id()).map_err(io::Error::other)
            },
            |pid| *pid,
        )?;
        // The child is reaped through its pidfd alone; the number is safe to use until then.
        match Self::open(pid) {
            Ok(process) => Ok(process),
            Err(error) => {
                orphans::forget(pid);
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process_group(pid, Signal::KILL);
                    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                }
                Err(error)
            }
        }
    }

    fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let identity = Identity::of(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            identity,
            pid: raw,
            pidfd: crate::readable(pidfd)?,
        })
    }

    /// Takes hold of the process that was described before, if it is still there.
    ///
    /// # Errors
    /// `NotFound` where it is gone, another where the system refuses.
    pub(crate) fn find(identity: &Identity) -> io::Result<Self> {
        let process = Self::open(identity.pid).map_err(|error| {
            if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) {
                io::ErrorKind::NotFound.into()
            } else {
                error
            }
        })?;
        if process.identity == *identity {
            Ok(process)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end and says how it ended. It is not reaped, so its number stays taken.
    ///
    /// # Errors
    /// Only where the async runtime is going down.
    pub(crate) async fn ended(&self) -> io::Result<Ended> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if self.has_ended() {
                return Ok(self.status());
            }
            ready.clear_ready();
        }
    }

    fn status(&self) -> Ended {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended::Code(code),
                (None, Some(signal)) => Ended::Signal(signal),
                (None, None) => Ended::NotTold,
            },
            Ok(None) | Err(_) => Ended::NotTold,
        }
    }

    /// Sends a signal to the process and all in its group.
    ///
    /// # Errors
    /// `NotFound` where the process has ended.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        if self.has_ended() {
            return Err(io::ErrorKind::NotFound.into());
        }
        match kill_process_group(self.pid, signal) {
            // It left its group, or nobody in it may be signalled: try itself.
            Err(Errno::SRCH | Errno::PERM) => Ok(pidfd_send_signal(self.pidfd.get_ref(), signal)?),
            result => Ok(result?),
        }
    }

    /// Kills the process and its group at once, if it still runs.
    pub(crate) fn kill(&self) {
        if self.signal_group(Signal::KILL).is_ok() {
            // A process that made itself a member of another group is meant as well.
            let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        }
    }

    /// Waits for its end (after [`kill`](Self::kill), say), ends what it started, and reaps it. Blocks.
    pub(crate) fn bury(&self) {
        let _ = poll(&mut [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)], None);
        session::end(&self.identity);
        orphans::forget(self.identity.pid);
        let _ = waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}
