//! Connections to the kernel's current process. Each restart begins another process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jupyter_protocol::zmq::{self, IopubSubscriber};
use jupyter_protocol::{Channel, ConnectionInfo};
use kernel_log::{NewEntry, Origin};
use kernel_provider::Phase;
use kernel_provider::agent::{Event, ProcessPhase};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::agent::Agent;
use crate::recording;

/// How long a kernel whose sockets are open may take to accept connections.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long to read iopub after the process has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// The kernel's current process.
#[derive(Default)]
pub(crate) struct CurrentProcess(tokio::sync::Mutex<ProcessState>);

#[derive(Default)]
struct ProcessState {
    /// The number of the current or last process. It also increases when another agent continues this log.
    number: u64,
    /// The current process, while its sockets are connected.
    connected: Option<ConnectedProcess>,
}

struct ConnectedProcess {
    pid: Option<i64>,
    iopub: tokio::task::JoinHandle<()>,
    replies: JoinSet<()>,
}

impl Agent {
    /// Connects to the kernel's current process and reports its phase. All messages of a process are in the log before
    /// its end is reported.
    pub(crate) async fn sync_process(self: &Arc<Self>) {
        let Some(kernel) = self.kernel() else { return };
        let mut state = self.process.0.lock().await;
        let phase = kernel.phase().borrow().clone();
        let pid = kernel.record().data["pid"].as_i64();
        let is_running = phase == Phase::Running;
        if state
            .connected
            .as_ref()
            .is_some_and(|process| !is_running || process.pid != pid)
            && let Some(process) = state.connected.take()
        {
            self.disconnect_process(process, state.number).await;
        }
        if is_running && state.connected.is_none() {
            state.number = state.number.max(self.log.head().0) + 1;
            match self.connect_process(pid, state.number).await {
                Ok(process) => state.connected = Some(process),
                // If the process has ended, the phase changes again, and this runs again.
                Err(error) => warn!(%error, "the kernel's sockets cannot be connected"),
            }
        }
        let now = ProcessPhase {
            process: state.number,
            pid,
            phase,
        };
        self.phase.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    async fn connect_process(self: &Arc<Self>, pid: Option<i64>, number: u64) -> io::Result<ConnectedProcess> {
        let Some(kernel) = self.kernel() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let info: ConnectionInfo = kernel.connection().await.map_err(io::Error::other)?;
        let signer = info.signer().map_err(io::Error::other)?;
        let identity = format!("kernelmux-{}", self.launch.id);
        let address = |channel| info.address(channel);
        let [shell_at, control_at, stdin_at, iopub_at] = Channel::WITH_MESSAGES.map(address);
        let (iopub, shell, control, stdin) = tokio::try_join!(
            IopubSubscriber::connect(&iopub_at, CONNECT_DEADLINE),
            zmq::dealer(&shell_at, &identity, CONNECT_DEADLINE),
            zmq::dealer(&control_at, &identity, CONNECT_DEADLINE),
            zmq::dealer(&stdin_at, &identity, CONNECT_DEADLINE),
        )
        .map_err(io::Error::other)?;
        self.no_drop.store(false, Ordering::Relaxed);
        self.is_idle.send_replace(false);
        self.delivery.begin(number);
        self.append_event(&Event::Opened { process: number });
        let iopub = tokio::spawn(recording::record_iopub(
            self.clone(),
            iopub.with_memory(&self.memory),
            iopub_at,
            signer.clone(),
        ));
        let mut replies = JoinSet::new();
        for (channel, (sender, receiver)) in [
            (Channel::Shell, shell),
            (Channel::Control, control),
            (Channel::Stdin, stdin),
        ] {
            self.delivery.connect(channel, sender, signer.clone()).await;
            replies.spawn(recording::record_replies(
                self.clone(),
                channel,
                receiver.with_memory(&self.memory),
                (address(channel), identity.clone()),
                signer.clone(),
            ));
        }
        Ok(ConnectedProcess { pid, iopub, replies })
    }

    /// Records the remaining output of a process that has ended, and closes the sockets.
    async fn disconnect_process(&self, mut process: ConnectedProcess, number: u64) {
        self.delivery.disconnect().await;
        let incomplete = timeout(DRAIN_DEADLINE, &mut process.iopub).await.is_err();
        process.iopub.abort();
        process.replies.shutdown().await;
        self.append_event(&Event::Closed {
            process: number,
            incomplete,
        });
    }

    /// Waits until the phase shows that this process has ended.
    pub(crate) async fn reported_end(&self, number: u64) {
        let mut phase = self.phase.subscribe();
        let is_reported = |phase: &ProcessPhase| phase.process != number || matches!(phase.phase, Phase::Exited(_));
        // The agent holds the sender, so this cannot fail.
        let _ = phase.wait_for(is_reported).await;
    }

    /// Appends an event to the log.
    pub(crate) fn append_event(&self, event: &Event) {
        self.append([NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session: "",
            message: &event.to_message(),
        }]);
    }
}
