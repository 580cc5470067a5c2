//! What all parts of a simulation share.

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
use super::random::{Digest, Random};
use super::scheduler::Scheduler;
use super::stock::Screens;

/// Beside this, actors have only what is theirs.
pub(crate) struct World {
    pub(crate) random: RefCell<Random>,
    pub(crate) scheduler: Scheduler,
    pub(crate) disk: Disk,
    pub(crate) id: KernelId,
    begun: Instant,
    /// What the process stores with; `None` while there is no process.
    pub(crate) stepper: RefCell<Option<Stepper>>,
    /// Whether something is stored of which nobody was told.
    pub(crate) untold: Cell<bool>,
    /// Whether the disk takes its time.
    pub(crate) stalled: Cell<bool>,
    pub(crate) process: watch::Sender<Option<Rc<Process>>>,
    /// The kernel's socket for requests.
    pub(crate) requests: RefCell<mpsc::Sender<(Channel, WireMessage)>>,
    /// Every entry that anybody was ever shown.
    seen: RefCell<BTreeMap<u64, u64>>,
    /// How often the kernel was handed each request.
    pub(crate) runs: RefCell<BTreeMap<String, u64>>,
    /// The questions that the kernel has an answer to, with the answer.
    pub(crate) answers: RefCell<BTreeMap<String, String>>,
    /// Requests whose code waited in vain for an answer of its user.
    pub(crate) unanswered: RefCell<BTreeSet<String>>,
    /// Whether no more is to go wrong.
    pub(crate) calm: watch::Sender<bool>,
    /// Clients that have what they are to have.
    pub(crate) finished: Cell<usize>,
    /// What stock clients show of their executions.
    pub(crate) screens: RefCell<Screens>,
    /// How far the clients of the resume protocol are.
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
            untold: Cell::new(false),
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

    pub(crate) fn of<T: Clone>(&self, choices: &[T]) -> T {
        self.random.borrow_mut().of(choices)
    }

    /// Waits up to so many milliseconds; half of the times not at all.
    pub(crate) async fn pause(&self, up_to: u64) {
        if self.one_in(2) {
            sleep(Duration::from_millis(self.below(up_to))).await;
        }
    }

    /// A request that runs something.
    pub(crate) fn request(&self, msg_id: &str, session: &str) -> WireMessage {
        let lines = (0..self.below(12)).map(|line| match self.below(10) {
            // The others read no questions.
            9 if session.starts_with("stock") && self.one_in(3) => format!("ask {line}"),
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

    /// Something has happened, which happens again with the same seed.
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

    /// Somebody was shown this entry, which is then the same for all and for ever.
    pub(crate) fn saw(&self, seq: u64, channel: Channel, message: &WireMessage) {
        let mut digest = Digest::default();
        digest.add(format!("{channel}").as_bytes());
        for part in message.parts_and_buffers() {
            digest.add(part);
        }
        let known = *self.seen.borrow_mut().entry(seq).or_insert(digest.0);
        assert_eq!(known, digest.0, "entry {seq} is not for all the same");
    }

    pub(crate) fn seen(&self) -> Vec<u64> {
        self.seen.borrow().keys().copied().collect()
    }

    /// Waits for a process.
    pub(crate) async fn process(&self) -> Rc<Process> {
        let mut process = self.process.subscribe();
        let found = process.wait_for(Option::is_some).await.unwrap();
        found.clone().unwrap()
    }

    /// The process is killed, as it is.
    pub(crate) fn kill(&self) {
        // First what stores: what others do as they are dropped, a process that is killed does not.
        self.stepper.take();
        self.untold.set(false);
        let process = self.process.send_replace(None);
        self.scheduler.kill_process();
        drop(process);
        self.disk.reopen();
    }

    /// A step of what is no actor: the disk, and what writes to it.
    pub(crate) fn step(&self) -> bool {
        if self.stalled.get() {
            return false;
        }
        let stored = match &mut *self.stepper.borrow_mut() {
            None => false,
            Some(stepper) if self.untold.take() => {
                stepper.publish();
                return true;
            }
            Some(stepper) => {
                let stored = stepper.store();
                self.untold.set(stored);
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

/// A message as clients and kernels make them, with a `msg_id` that the seed decides.
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
