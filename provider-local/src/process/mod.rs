//! A process that leads its own session, watched through a pidfd.
//!
//! A pidfd signals a process's exit even if the process is not a child of this one. Unlike a process id, it is never
//! reused for another process.

pub(crate) mod oom;
pub(crate) mod orphans;
pub(crate) mod session;
pub(crate) mod stat;
pub(crate) mod usage;

use std::io;
use std::process::Command;
use std::sync::Arc;

use process_wrap::std::{CommandWrap, ProcessSession};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use stat::Identity;

use crate::output_pipe::OutputPipe;

/// A process, running or ended. Dropping this neither ends nor reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    identity: Identity,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Its output, if it goes through a pipe.
    output: Option<Arc<OutputPipe>>,
}

/// How a process ended, as far as the system reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// The system reports the exit status only to the parent, and this process is not the parent.
    Unknown,
}

impl Process {
    /// Starts a program as the leader of a new session and process group. Blocks until the program runs or has failed
    /// to start.
    ///
    /// The caller owns the process: dropping this does not end it.
    pub(crate) fn spawn(command: Command) -> io::Result<Self> {
        // In its own session the kernel receives no signals or hang-ups from the terminal of this program, and cannot
        // access that terminal.
        let pid = orphans::start_tracked(
            || {
                let child = CommandWrap::from(command).wrap(ProcessSession).spawn()?;
                i32::try_from(child.id()).map_err(io::Error::other)
            },
            |pid| *pid,
        )?;
        // The child is only reaped through its pidfd, so its id stays valid until then.
        match Self::open(pid) {
            Ok(process) => Ok(process),
            Err(error) => {
                orphans::untrack(pid);
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
            output: None,
        })
    }

    /// Sets the pipe through which its output goes.
    pub(crate) fn with_output(self, output: Option<Arc<OutputPipe>>) -> Self {
        Self { output, ..self }
    }

    /// Opens an existing process by its identity.
    ///
    /// # Errors
    /// `NotFound` if the process is gone. Any other error means that the system refused to open it.
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

    /// Whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for the process to end. Does not reap it, so its id stays in use.
    ///
    /// # Errors
    /// Only if the runtime is shutting down.
    pub(crate) async fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if self.has_ended() {
                return Ok(self.status());
            }
            ready.clear_ready();
        }
    }

    fn status(&self) -> ExitStatus {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => ExitStatus::Unknown,
            },
            Ok(None) | Err(_) => ExitStatus::Unknown,
        }
    }

    /// Sends a signal to the process and its process group.
    ///
    /// # Errors
    /// `NotFound` if the process has ended. Otherwise the system's error for a signal that could not be sent.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        if self.has_ended() {
            return Err(io::ErrorKind::NotFound.into());
        }
        match kill_process_group(self.pid, signal) {
            // The process left its group, or no member of it may be signalled: signal the process alone.
            Err(Errno::SRCH | Errno::PERM) => Ok(pidfd_send_signal(self.pidfd.get_ref(), signal)?),
            result => Ok(result?),
        }
    }

    /// Kills the process and its group, if it is still running.
    pub(crate) fn kill(&self) {
        if self.signal_group(Signal::KILL).is_ok() {
            // The process may have joined another group.
            let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        }
    }

    /// Kills the process and its session. Waits at most a few seconds for the session's other processes to end, but not
    /// for this one.
    pub(crate) fn kill_all(&self) {
        self.kill();
        session::kill_members(&self.identity);
    }

    /// Waits for the process to end, for example after [`kill`](Self::kill), then kills the rest of its session, reaps
    /// it, and copies the rest of its output. Blocks the thread.
    pub(crate) fn reap(&self) {
        let _ = poll(&mut [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)], None);
        session::kill_members(&self.identity);
        orphans::untrack(self.identity.pid);
        let _ = waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        self.drain_output();
    }

    /// Copies the output that is still in its pipe to the output file. Blocks briefly.
    pub(crate) fn drain_output(&self) {
        if let Some(output) = &self.output {
            output.drain();
        }
    }
}
