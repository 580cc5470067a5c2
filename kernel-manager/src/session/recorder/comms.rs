//! Lists the open comms. A new process reads them from the log when they are first needed.

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{Channel, Header, WireMessage};
use kernel_log::{Entry, Lifecycle, Log, Origin, ReadError, Reader, Seq, StoreError};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Recorder, Recording};
use crate::session::comms::{Comm, Comms, MAX_COMMS, WIDGET, is_comm};
use crate::session::index_keys as keys;
use crate::session::msg_type::msg_type;

impl Recorder {
    /// The comms that were opened up to entry `until`, with their newest state. Comms come after those that they refer
    /// to.
    pub(crate) async fn comms(&self, until: Seq) -> Result<Vec<Comm>, ReadError> {
        self.recording.list_comms(move |comms| comms.list(until)).await
    }

    /// The `comm_open` messages of the widgets that were opened up to entry `until`, with the execution as parent.
    pub(crate) async fn widgets(&self, until: Seq, execution: &Header) -> Result<Vec<WireMessage>, ReadError> {
        let (session, execution) = (self.kernel_session(), execution.clone());
        let open = move |comms: &Comms| {
            let widgets = comms.list(until).into_iter().filter(|comm| comm.target_name == WIDGET);
            widgets.map(|comm| comm.open_message(&session, &execution)).collect()
        };
        self.recording.list_comms(open).await
    }
}

/// How many threads list comms at a time, because each of them occupies a CPU core.
static LISTING: Semaphore = Semaphore::const_new(2);
/// Deadline for reading the open comms from the log.
const READ_DEADLINE: Duration = Duration::from_secs(30);

impl Recording {
    /// Calls `list` with the open comms on a blocking thread.
    async fn list_comms<T: Send + 'static>(
        self: &Arc<Self>,
        list: impl FnOnce(&Comms) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let comms = self.read_comms().await?;
        // The semaphore is never closed.
        let _listing = LISTING.acquire().await;
        let listed = spawn_blocking(move || list(&comms)).await;
        listed.map_err(|error| StoreError::failed("list the open comms", error).into())
    }

    /// The open comms. Reads them from the log unless they are known.
    pub(super) async fn read_comms(self: &Arc<Self>) -> Result<Comms, ReadError> {
        let failed = |reason: &str| StoreError::failed("read the open comms", reason).into();
        match timeout(READ_DEADLINE, self.read_unknown_comms()).await {
            Ok(read) => read?,
            Err(_) => return Err(failed("reading the log takes too long")),
        }
        let known = self.requests().comms.known().cloned();
        known.ok_or_else(|| failed("too many comm messages arrived while the log was read"))
    }

    async fn read_unknown_comms(self: &Arc<Self>) -> Result<(), ReadError> {
        let reading = self.reading_comms.clone().lock_owned().await;
        if self.requests().comms.known().is_some() {
            return Ok(());
        }
        let recording = self.clone();
        // A separate task, so that the read completes even if the caller stops waiting.
        let read = tokio::spawn(async move {
            let _reading = reading;
            recording.read_comms_now().await
        });
        read.await.unwrap_or(Ok(()))
    }

    async fn read_comms_now(&self) -> Result<(), ReadError> {
        let mut comms = Comms::default();
        let mut reader = match first_open(&self.log).await? {
            Some(first) => self.log.reader(Seq(first.0.saturating_sub(1))),
            None => self.log.reader(self.log.head()),
        };
        // Read most of the log before new messages must be buffered.
        read(&mut reader, self.log.head(), &mut comms).await?;
        let last = {
            let mut requests = self.requests();
            requests.comms.begin_reading();
            self.log.append([])
        };
        self.log.stored(last).await;
        let rest = read(&mut reader, last.min(self.log.head()), &mut comms).await;
        self.requests().comms.end_reading(rest.is_ok().then_some(comms));
        rest
    }
}

/// The oldest `comm_open` of the comms that are open.
async fn first_open(log: &Log) -> Result<Option<Seq>, StoreError> {
    let (start, end) = keys::COMMS;
    let open = log.index_scan(start, end, 2 * MAX_COMMS, false).await?;
    Ok(open.iter().filter_map(|(_, seq)| keys::seq_of(seq)).min())
}

/// Applies the entries up to `end`.
async fn read(reader: &mut Reader, end: Seq, comms: &mut Comms) -> Result<(), ReadError> {
    while reader.position() < end {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => continue,
            Err(error) => return Err(error),
        };
        for entry in block.entries() {
            apply(&entry, comms);
        }
        // Reading entries from memory does not wait, so yield to other tasks.
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn apply(entry: &Entry, comms: &mut Comms) {
    let message = entry.message();
    match (entry.origin(), entry.channel()) {
        (Origin::Kernel, Channel::Iopub) | (Origin::Client, Channel::Shell) if is_comm(&msg_type(&message)) => {
            comms.on_message(entry.seq(), &message, &mut Vec::new());
        }
        (Origin::Lifecycle, _) => {
            if let Some(
                Lifecycle::Started
                | Lifecycle::Restarting
                | Lifecycle::RestartingByItself { .. }
                | Lifecycle::Dead { .. },
            ) = Lifecycle::from_message(&message)
            {
                comms.end(entry.seq(), &mut Vec::new());
            }
        }
        _ => {}
    }
}
