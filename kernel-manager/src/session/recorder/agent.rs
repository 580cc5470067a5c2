//! Records a kernel that has an agent. Messages come from the agent's log instead of the kernel's sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::zmq::SocketError;
use jupyter_protocol::{Channel, Signer, WireMessage};
use kernel_log::{Block, Entry, Lifecycle, Origin, Seq};
use kernel_provider::Phase;
use kernel_provider::agent::frame::CHANNELS;
use kernel_provider::agent::{Acknowledger, Control, Event, Incoming, Link, LinkClosed, Received};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, info_span, warn};
use uuid::Uuid;

use super::reconnect::recover;
use super::senders::{Destination, Sender};
use super::{ConnectionState, LARGE, Recorder, Recording, SendError, skipped_text};
use crate::session::agent_position::{AgentPosition, Numbering, SendNumber};
use crate::session::execution_state::StatusFollower;
use crate::session::executions::message_at;
use crate::session::index_keys as keys;
use crate::session::known_requests::MAX_REQUESTS;
use crate::session::synthetic_reply::MISSING;

/// Why a connection to a kernel's agent is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connecting {
    /// The kernel's process was just started.
    Started,
    /// The kernel was already running, before this program started or while the connection was closed.
    Attached,
}

fn broken(error: LinkClosed) -> SocketError {
    SocketError::Broken(error.to_string())
}

impl Recorder {
    /// Connects to a kernel whose process was just started. Returns once all messages of its earlier processes are
    /// recorded.
    pub(crate) async fn connect_agent(&self, link: &Arc<Link>, deadline: Duration) -> Result<(), SocketError> {
        let connected = timeout(deadline, async {
            let opened = self.read_agent(link, Connecting::Started).await?;
            let process = link.phase().borrow().process;
            wait_until_opened(opened, process).await;
            Ok(())
        });
        let silent = |_| SocketError::Broken("the kernel's agent does not answer".to_owned());
        connected.await.map_err(silent)?
    }

    /// Connects to a kernel that was already running. Returns once all messages that its agent has kept are recorded
    /// and messages that did not reach the kernel are sent again. There is no deadline, because there may be many
    /// messages.
    pub(crate) async fn reconnect_agent(&self, link: &Arc<Link>) -> Result<(), SocketError> {
        self.recording.find_kernel_session().await;
        let opened = self.read_agent(link, Connecting::Attached).await?;
        let phase = link.phase().borrow().clone();
        if phase.phase == Phase::Running {
            wait_until_opened(opened, phase.process).await;
        }
        Ok(())
    }

    /// Starts to record the agent's entries. Returns a watch of the number of the newest process that clients' messages
    /// can be sent to.
    async fn read_agent(&self, link: &Arc<Link>, connecting: Connecting) -> Result<watch::Receiver<u64>, SocketError> {
        let welcome = link.welcome().await.map_err(broken)?;
        self.disconnect().await;
        if connecting == Connecting::Started {
            link.drop_unsent();
        }
        let spool = welcome.spool;
        let recorded = self
            .recording
            .requests()
            .agent()
            .filter(|position| position.spool == spool);
        let position = recorded.unwrap_or(AgentPosition {
            spool,
            seq: 0,
            process: 0,
            is_closed: false,
            numbering: Numbering::default(),
        });
        let (opened, is_opened) = watch::channel(0);
        let (appended, acknowledged) = watch::channel(position.seq);
        let incoming = link.read(position.seq);
        // An earlier connection may have been closed before it acknowledged these entries.
        incoming.acknowledger().acknowledge(position.seq);
        let (recording, runtime) = (&self.recording, self.runtime.clone().unwrap_or_else(Handle::current));
        let span = info_span!("recorder", kernel_id = %recording.id);
        let reconnected = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let acknowledging = acknowledge(recording.clone(), acknowledged, incoming.acknowledger());
        tasks.spawn_on(acknowledging.instrument(span.clone()), &runtime);
        tasks.spawn(recover(recording.clone(), reconnected.clone()).instrument(span.clone()));
        let reading = AgentReader {
            recording: recording.clone(),
            link: link.clone(),
            connecting,
            position,
            catch_up_to: welcome.head,
            is_open: false,
            recorded: position.seq,
            status: StatusFollower::default(),
            opened,
            appended,
            acknowledger: incoming.acknowledger(),
            is_over: false,
            reconnected,
        };
        recording.publishing.send_replace(true);
        tasks.spawn_on(reading.run(incoming).instrument(span), &runtime);
        self.set_connection(tasks);
        Ok(is_opened)
    }
}

/// Waits until clients' messages can be sent to this process, or to a later one.
async fn wait_until_opened(mut opened: watch::Receiver<u64>, process: u64) {
    // If the agent is gone, the kernel's phase reports this to the caller.
    if opened.wait_for(|opened| *opened >= process).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// How long acknowledgements are collected, because each of them wakes the agent.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(20);

/// Acknowledges the agent's entries that are stored.
async fn acknowledge(recording: Arc<Recording>, mut appended: watch::Receiver<u64>, acknowledger: Acknowledger) {
    while appended.changed().await.is_ok() {
        sleep(ACKNOWLEDGE_AFTER).await;
        let seq = *appended.borrow_and_update();
        recording.log.flushed().await;
        acknowledger.acknowledge(seq);
    }
}

struct AgentReader {
    recording: Arc<Recording>,
    link: Arc<Link>,
    connecting: Connecting,
    position: AgentPosition,
    /// The last entry that the agent had when this connection was made.
    catch_up_to: u64,
    /// Whether clients' messages can be sent to `position.process`.
    is_open: bool,
    /// The agent's last entry whose position was stored together with an entry of this log.
    recorded: u64,
    status: StatusFollower,
    /// The number of the newest process that clients' messages can be sent to.
    opened: watch::Sender<u64>,
    /// The number of the agent's last entry that is in this log.
    appended: watch::Sender<u64>,
    acknowledger: Acknowledger,
    /// Whether the last entry of the kernel's current process was just read.
    is_over: bool,
    reconnected: Arc<Notify>,
}

impl AgentReader {
    /// Records until the agent is gone.
    async fn run(mut self, mut incoming: Incoming) {
        let process = self.link.phase().borrow().process;
        if self.position.is_closed && self.position.process >= process {
            self.recording.publishing.send_replace(false);
        }
        let mut reserved = None;
        loop {
            self.open_if_due().await;
            self.recording.log.room().await;
            match incoming.next().await {
                Some(Received::Entries(block)) => {
                    self.record(block).await;
                    reserved = None;
                    if std::mem::take(&mut self.is_over) {
                        self.acknowledge_all().await;
                        self.recording.publishing.send_replace(false);
                    }
                }
                Some(Received::Offer { first, bytes }) => {
                    // Release the memory first, in case the offer is repeated.
                    drop(reserved.take());
                    reserved = Some(self.recording.memory.reserve(bytes).await);
                    incoming.take(first);
                }
                Some(Received::Gap { first, last }) => {
                    self.skip_to(last);
                    warn!(first, last, "the agent had no room for messages of the kernel");
                    self.recording.lifecycle(&Lifecycle::Disconnected);
                    self.recording.report_missing_output(MISSING, true);
                    self.status = StatusFollower::default();
                    self.reconnected.notify_one();
                }
                None => break,
            }
        }
        self.recording.publishing.send_replace(false);
    }

    /// Acknowledges the entries of a process that has ended. The agent of a kernel that was shut down waits for this.
    async fn acknowledge_all(&self) {
        // If the disk is full, the entries are acknowledged once there is room.
        if self.recording.store_last_entries().await {
            self.acknowledger.acknowledge(self.position.seq);
        }
    }

    /// Continues after missing entries.
    fn skip_to(&mut self, last: u64) {
        self.position.seq = last;
        let process = self.link.phase().borrow().process;
        // The number of a process is at most that of its `Opened` entry. If it is greater than `last`, that entry is
        // not among the missing ones and is still to be read.
        if process <= last {
            self.position.process = process;
            self.position.is_closed = false;
        }
    }

    /// Allows clients' messages once the sockets of the current process are connected, and this log has all entries
    /// that the agent had when this connection was made.
    async fn open_if_due(&mut self) {
        if self.is_open || self.position.is_closed || self.position.process == 0 || self.position.seq < self.catch_up_to
        {
            return;
        }
        let is_present = {
            let phase = self.link.phase();
            let phase = phase.borrow();
            // The agent reports the phase a moment after it has connected the sockets.
            self.position.process > phase.process
                || self.position.process == phase.process && phase.phase == Phase::Running
        };
        if is_present {
            self.is_open = true;
            self.open().await;
        }
    }

    async fn record(&mut self, block: Bytes) {
        let Some(block) = Block::recover(block) else {
            warn!("the agent sent entries that are not valid");
            return;
        };
        let mut published = Vec::new();
        let mut bytes = 0;
        for entry in block.entries() {
            let message = entry.message();
            bytes += message.size();
            if entry.origin() == Origin::Kernel && entry.channel() == Channel::Iopub {
                if !self.recording.setup.hides(&message) {
                    published.push(message);
                }
                self.position.seq = entry.seq().0;
                continue;
            }
            self.publish(&mut published, &block);
            self.position.seq = entry.seq().0;
            match entry.origin() {
                Origin::Kernel => {
                    self.set_position();
                    self.recording.record_reply(entry.channel(), message, entry.time());
                }
                _ => self.on_event(&entry).await,
            }
        }
        self.publish(&mut published, &block);
        if self.recorded != self.position.seq {
            // The last entries of the block did not cause an entry in this log.
            self.store_position();
        }
        self.appended.send_replace(self.position.seq);
        if self.recording.setup.take_succeeded() {
            self.link.notify(Control::NoDrop);
        }
        if bytes >= LARGE {
            drop(block);
            self.recording.log.flushed().await;
        }
    }

    /// Appends iopub messages that arrived together.
    fn publish(&mut self, messages: &mut Vec<WireMessage>, block: &Block) {
        if messages.is_empty() {
            return;
        }
        self.set_position();
        self.recording
            .record_published(messages, &mut self.status, block.updated());
        messages.clear();
    }

    /// Stores the position without an entry.
    fn store_position(&self) {
        let updates = {
            let mut requests = self.recording.requests();
            requests.set_agent(self.position);
            requests.take_updates()
        };
        self.recording.log.update_index(updates);
    }

    /// Stores the position together with the entry that is appended next.
    fn set_position(&mut self) {
        self.recording.requests().set_agent(self.position);
        self.recorded = self.position.seq;
    }

    async fn on_event(&mut self, entry: &Entry) {
        let Some(event) = Event::from_message(&entry.message()) else {
            debug!("the agent reported an event that this version does not support");
            return;
        };
        match event {
            Event::Opened { process } => {
                self.position.process = process;
                self.position.is_closed = false;
                self.status = StatusFollower::default();
                self.is_open = false;
            }
            Event::Closed { process, incomplete } => {
                self.position.is_closed = true;
                if process >= self.link.phase().borrow().process {
                    if incomplete {
                        self.recording.lifecycle(&Lifecycle::Disconnected);
                    }
                    self.is_over = true;
                }
            }
            Event::Disconnected => {
                self.recording.lifecycle(&Lifecycle::Disconnected);
            }
            Event::Reconnected => {
                self.recording.report_missing_output(MISSING, true);
                // The kernel may have become idle while the connection was lost.
                self.status = StatusFollower::default();
                self.reconnected.notify_one();
            }
            Event::Skipped { bytes, too_large } => {
                self.recording.refused.skipped();
                self.recording
                    .report_missing_output(&skipped_text(bytes, too_large), false);
            }
            Event::RepliesLost => {
                self.recording.refused.skipped();
                self.reconnected.notify_one();
            }
            _ => debug!("the agent reported an event that this version does not support"),
        }
    }

    /// Allows clients' messages to be sent to the current process.
    async fn open(&mut self) {
        let recording = &self.recording;
        // Begin the setup before the senders are set, so that no client's request is sent first.
        if self.connecting == Connecting::Started {
            recording.setup.begin();
        }
        let log = match recording.log.epoch().to_string().parse::<Uuid>() {
            Ok(log) => log.as_u128(),
            Err(error) => {
                warn!(%error, "the log's epoch is not a UUID");
                return;
            }
        };
        self.continue_numbering(log).await;
        let recording = &self.recording;
        for channel in CHANNELS {
            let sender = Sender {
                signer: Signer::unsigned(),
                to: Destination::Agent(
                    self.link.sender(channel, self.position.process, log),
                    self.position.numbering,
                ),
            };
            recording.senders.set(channel, Some(sender)).await;
        }
        if self.connecting == Connecting::Attached {
            if let Err(error) = self.send_unaccepted(log).await {
                warn!(%error, "messages that did not reach the kernel cannot be sent again");
            }
            // The agent subscribed before this connection was made.
            recording.connection_state.send_replace(ConnectionState::Subscribed);
            // Makes the kernel report its status.
            self.reconnected.notify_one();
        } else {
            recording.connection_state.send_replace(ConnectionState::Connected);
        }
        self.opened.send_replace(self.position.process);
    }

    /// Makes the numbers of messages continue after those that the agent has accepted.
    async fn continue_numbering(&mut self, log: u128) {
        let Ok(welcome) = self.link.welcome().await else { return };
        if welcome.accepted.log != Some(Uuid::from_u128(log)) {
            return;
        }
        let accepted = CHANNELS.map(|channel| welcome.accepted.last(channel)).into_iter().max();
        let before = self.position.numbering;
        let last = self.recording.log.append([]);
        self.position
            .numbering
            .continue_after(accepted.unwrap_or_default(), last);
        if self.position.numbering != before {
            self.store_position();
        }
    }

    /// Sends messages that an earlier run of this program logged but did not pass to the agent.
    async fn send_unaccepted(&self, log: u128) -> Result<(), SendError> {
        let Ok(welcome) = self.link.welcome().await else {
            return Ok(());
        };
        let recording = &self.recording;
        let accepted = |channel| {
            if welcome.accepted.log == Some(Uuid::from_u128(log)) {
                self.position.numbering.last_accepted(welcome.accepted.last(channel))
            } else {
                Seq::START
            }
        };
        let mut unaccepted: Vec<Seq> = Vec::new();
        for execution in recording.requests().unfinished_before(Seq(u64::MAX)) {
            if execution.request > accepted(Channel::Shell) {
                unaccepted.push(execution.request);
            }
        }
        // Of other requests, only those after the last accepted one can be missing, because each message waits until
        // the previous one is accepted.
        let newest = CHANNELS.map(accepted).into_iter().max();
        if let Some(newest) = newest.filter(|newest| *newest > Seq::START) {
            let (_, end) = keys::OTHER_REQUESTS;
            let start = keys::other_request(newest.next());
            let others = recording.log.index_scan(start, end, MAX_REQUESTS, false).await;
            let others = others.unwrap_or_default();
            unaccepted.extend(others.iter().filter_map(|(key, _)| keys::seq_of(key)));
        }
        unaccepted.sort();
        for seq in unaccepted {
            let Ok(Some((channel, message))) = message_at(&recording.log, seq).await else {
                continue;
            };
            let mut sender = recording.senders.of(channel).lock().await;
            debug!(%channel, %seq, "sending a message that did not reach the kernel");
            if let Some(sender) = &mut *sender {
                sender.send(message, SendNumber::of(seq)).await?;
            }
        }
        Ok(())
    }
}
