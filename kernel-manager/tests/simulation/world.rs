//! State shared by all parts of a simulation.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::{Channel, KernelId, WireMessage};
use kernel_log::Stepper;
use kernel_manager::simulation::SimulatedKernel;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::disk::Disk;
use super::plain_client::Screens;
use super::random::{Digest, Random};
use super::scheduler::Scheduler;

/// The shared state. Each actor's other state is private.
pub(crate) struct World {
    pub(crate) random: RefCell<Random>,
    pub(crate) scheduler: Scheduler,
    pub(crate) disk: Disk,
    pub(crate) id: KernelId,
    begun: Instant,
    /// The log's writer; `None` while there is no process.
    pub(crate) stepper: RefCell<Option<Stepper>>,
    /// Whether stored entries have not been published to readers yet.
    pub(crate) unpublished: Cell<bool>,
    /// Whether the disk stalls.
    pub(crate) stalled: Cell<bool>,
    pub(crate) process: watch::Sender<Option<Rc<Process>>>,
    /// The kernel's socket for requests.
    pub(crate) requests: RefCell<mpsc::Sender<(Channel, WireMessage)>>,
    /// Digest of every entry that a reader or client received, by `seq`.
    seen: RefCell<BTreeMap<u64, u64>>,
    /// How often the kernel ran each execute request.
    pub(crate) runs: RefCell<BTreeMap<String, u64>>,
    /// Answers that the kernel received, by input request.
    pub(crate) answers: RefCell<BTreeMap<String, String>>,
    /// Requests whose code asked for input and got no answer in time, or got the answer to another question.
    pub(crate) unanswered: RefCell<BTreeSet<String>>,
    /// Whether fault injection has ended.
    pub(crate) calm: watch::Sender<bool>,
    /// Number of requesters that have sent all their requests.
    pub(crate) finished: Cell<usize>,
    /// Outputs that plain clients show, by request.
    pub(crate) screens: RefCell<Screens>,
    /// Last `seq` of each client of the resume protocol.
    pub(crate) positions: RefCell<BTreeMap<String, u64>>,
    trace: Cell<Digest>,
    verbose: bool,
}

/// The gateway's process.
pub(crate) struct Process {
    pub(crate) simulated: SimulatedKernel,
    pub(crate) iopub: mpsc::Sender<WireMessage>,
    pub(crate) replies: mpsc::Sender<(Channel, WireMessage)>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            random: RefCell::new(Random::new(seed)),
            scheduler: Scheduler::default(),
            disk: Disk::new(),
            id: KernelId::from(uuid::Uuid::from_u128(u128::from(seed))),
            begun: Instant::now(),
            stepper: RefCell::default(),
            unpublished: Cell::new(false),
            stalled: Cell::new(false),
            process: watch::Sender::new(None),
            requests: RefCell::new(mpsc::channel(1).0),
            seen: RefCell::default(),
            runs: RefCell::default(),
            answers: RefCell::default(),
            unanswered: RefCell::default(),
            calm: watch::Sender::new(false),
            finished: Cell::new(0),
            screens: RefCell::default(),
            positions: RefCell::default(),
            trace: Cell::default(),
            verbose: std::env::var_os("KERNELMUX_TRACE").is_some(),
        })
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().below(limit)
    }

    pub(crate) fn one_in(&self, times: u64) -> bool {
        self.random.borrow_mut().one_in(times)
    }

    pub(crate) fn choose<T: Clone>(&self, choices: &[T]) -> T {
        self.random.borrow_mut().choose(choices)
    }

    /// Waits up to `up_to` milliseconds, or, half of the time, not at all.
    pub(crate) async fn pause(&self, up_to: u64) {
        if self.one_in(2) {
            sleep(Duration::from_millis(self.below(up_to))).await;
        }
    }

    /// Makes an execute request with a random script.
    pub(crate) fn request(&self, msg_id: &str, session: &str) -> WireMessage {
        let lines = (0..self.below(12)).map(|line| match self.below(10) {
            // Other clients do not answer input requests.
            9 if session.starts_with("plain") && self.one_in(3) => format!("ask {line}"),
            0 => "clear".to_owned(),
            1 => "clear later".to_owned(),
            2 => format!("show {line}"),
            3 => format!("change {line}"),
            4..=6 => format!("bar {line}"),
            _ => format!("print {line}"),
        });
        let code = lines.collect::<Vec<_>>().join("\n");
        message(
            msg_id,
            "execute_request",
            session,
            None,
            &serde_json::json!({"code": code}),
        )
    }

    /// Records an event. A run with the same seed must record the same events.
    pub(crate) fn trace(&self, what: fmt::Arguments<'_>) {
        let text = format!("{} {what}", self.begun.elapsed().as_millis());
        if self.verbose {
            println!("{text}");
        }
        let mut digest = self.trace.get();
        digest.add(text.as_bytes());
        self.trace.set(digest);
    }

    pub(crate) fn digest(&self) -> Digest {
        self.trace.get()
    }

    /// Records that a reader or client received this entry, and checks that it is the same for all of them.
    pub(crate) fn saw(&self, seq: u64, channel: Channel, message: &WireMessage) {
        let mut digest = Digest::default();
        digest.add(format!("{channel}").as_bytes());
        for part in message.parts_and_buffers() {
            digest.add(part);
        }
        let known = *self.seen.borrow_mut().entry(seq).or_insert(digest.0);
        assert_eq!(known, digest.0, "entry {seq} differs between readers");
    }

    pub(crate) fn seen(&self) -> Vec<u64> {
        self.seen.borrow().keys().copied().collect()
    }

    /// Waits until the gateway's process runs, and returns it.
    pub(crate) async fn process(&self) -> Rc<Process> {
        let mut process = self.process.subscribe();
        let found = process.wait_for(Option::is_some).await.unwrap();
        found.clone().unwrap()
    }

    /// Kills the process.
    pub(crate) fn kill(&self) {
        // Drop the writer first, so that nothing is stored while the other parts are dropped.
        self.stepper.take();
        self.unpublished.set(false);
        let process = self.process.send_replace(None);
        self.scheduler.kill_process();
        drop(process);
        self.disk.reopen();
    }

    /// Runs a step of the log's writer, if there is one to run, and kills the process after a torn write. Returns
    /// whether a step was run.
    pub(crate) fn step(&self) -> bool {
        if self.stalled.get() {
            return false;
        }
        let stored = match &mut *self.stepper.borrow_mut() {
            None => false,
            Some(stepper) if self.unpublished.take() => {
                stepper.publish();
                return true;
            }
            Some(stepper) => {
                let stored = stepper.store();
                self.unpublished.set(stored);
                stored
            }
        };
        if self.disk.is_torn() {
            self.trace(format_args!("killed in a write"));
            self.kill();
        }
        stored
    }
}

/// A message as clients and kernels send it. Its date is fixed, so that runs with the same seed are identical.
pub(crate) fn message(
    msg_id: &str,
    msg_type: &str,
    session: &str,
    parent: Option<&WireMessage>,
    content: &serde_json::Value,
) -> WireMessage {
    let header = serde_json::json!({
        "msg_id": msg_id, "msg_type": msg_type, "session": session, "username": "",
        "date": "2026-01-01T00:00:00.000000Z", "version": "5.4",
    });
    let parent = parent.map_or_else(|| Bytes::from_static(b"{}"), |parent| parent.header().clone());
    let [header, content] = [&header, content].map(|part| Bytes::from(part.to_string()));
    WireMessage::from_parts([header, parent, Bytes::from_static(b"{}"), content], [])
}
