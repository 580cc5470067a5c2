//! The folder of an agent.
//!
//! ```text
//! STATE/agents/ID-SUFFIX/
//!     record.json      the kernel's record, the agent's process and its secret
//!     launch.json      the agent's configuration and its kernel's launch
//!     agent.log        the agent's standard error
//!     spool/           the agent's log of the kernel's messages
//!     kernels/, …      the state directory of the provider in the agent, which starts the kernel
//! STATE/s/SUFFIX.a     the agent's socket
//! ```
//!
//! `state.rs` explains SUFFIX and `STATE/s`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jupyter_protocol::KernelId;
use kernel_provider::agent::Launch;
use kernel_provider::{KernelRecord, ProviderError};
use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::process::stat::{Identity, find_by_argument};
use crate::state::{KernelFiles, StateDir, load_record, save_record};

/// The contents of `record.json`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SavedAgent {
    pub(super) record: KernelRecord,
    /// The secret that a connection to the agent must present.
    pub(super) token: String,
    /// The agent's process; `None` before it is started.
    pub(super) process: Option<Identity>,
    /// Whether the kernel has started.
    pub(super) is_confirmed: bool,
}

/// The paths of an agent's files.
#[derive(Clone, Debug)]
pub(super) struct AgentFiles {
    pub(super) id: KernelId,
    pub(super) dir: PathBuf,
    pub(super) socket: PathBuf,
}

impl AgentFiles {
    /// The paths for a new agent.
    pub(super) fn new(state: &StateDir, id: KernelId) -> Self {
        let mut suffix = uuid::Uuid::new_v4().simple().to_string();
        suffix.truncate(8);
        Self::of(state, id, &suffix)
    }

    fn of(state: &StateDir, id: KernelId, suffix: &str) -> Self {
        Self {
            id,
            dir: state.agents().join(format!("{id}-{suffix}")),
            socket: state.socket_dir().join(format!("{suffix}.a")),
        }
    }

    /// Finds the folders of all agents.
    pub(super) fn all(state: &StateDir) -> Result<Vec<Self>, ProviderError> {
        let entries = fs::read_dir(state.agents())
            .map_err(|error| ProviderError::failed(format!("read {}", state.agents().display()), error))?;
        let of = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            let (id, suffix) = name.to_str()?.rsplit_once('-')?;
            Some(Self::of(state, id.parse().ok()?, suffix))
        };
        Ok(entries.filter_map(of).collect())
    }

    pub(super) fn create(&self) -> Result<(), ProviderError> {
        crate::state::create_private_dir(&self.dir)
    }

    pub(super) fn launch(&self) -> PathBuf {
        self.dir.join("launch.json")
    }

    pub(super) fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn record(&self) -> PathBuf {
        self.dir.join("record.json")
    }

    /// Writes `launch.json`.
    pub(super) fn save_launch(&self, launch: &Launch) -> Result<(), ProviderError> {
        save_record(&self.launch(), launch)
    }

    /// Writes `record.json`.
    pub(super) fn save(&self, saved: &SavedAgent) -> Result<(), ProviderError> {
        save_record(&self.record(), saved)
    }

    pub(super) fn load(&self) -> io::Result<SavedAgent> {
        load_record(&self.record())
    }

    /// Kills the kernel of an agent that is gone, with all processes of the kernel's session, and removes the kernel's
    /// files, so that the next agent in this folder does not attach to that kernel. Blocks the thread.
    pub(super) fn end_kernel(&self) {
        let Ok(entries) = fs::read_dir(self.dir.join("kernels")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let suffix = name
                .to_str()
                .and_then(|name| name.rsplit_once('-'))
                .map(|(_, suffix)| suffix);
            let files = KernelFiles {
                dir: entry.path(),
                socket_dir: self.socket.with_file_name(suffix.unwrap_or_default()),
                id: self.id,
            };
            let saved = files.load().ok().and_then(|saved| saved.process);
            let identity = saved.or_else(|| find_by_argument(&files.connection_file()));
            if let Some(identity) = identity {
                match Process::find(&identity) {
                    Ok(process) => {
                        process.kill();
                        process.reap();
                    }
                    // The kernel ended with the agent, but processes that it started may still run.
                    Err(_) => crate::process::session::kill_members(&identity),
                }
            }
            if suffix.is_some() {
                files.remove_all();
            }
        }
    }

    /// Removes all files of the agent and its kernel.
    pub(super) fn remove_all(&self) {
        let _ = fs::remove_file(&self.socket);
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the folder of an agent");
        }
    }

    /// The last line of the agent's standard error.
    pub(super) fn last_error_line(&self) -> String {
        last_line(&self.agent_log()).unwrap_or_default()
    }
}

fn last_line(path: &Path) -> Option<String> {
    let text = crate::output::tail(path, 0, crate::output::ERROR_TAIL).ok()?;
    text.trim_end().lines().last().map(str::to_owned)
}
