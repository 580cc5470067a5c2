//! Runs actors in an order that the seed decides. Tokio's own order is not deterministic.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::random::Random;

/// More steps than any simulation takes.
const MAX_STEPS: u64 = 5_000_000;

type Actor = Pin<Box<dyn Future<Output = ()>>>;

/// When an actor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// With the simulation.
    World,
    /// With the gateway's process.
    Process,
}

/// Runs actors, one at a time.
#[derive(Clone, Default)]
pub(crate) struct Scheduler(Rc<RefCell<Actors>>);

#[derive(Default)]
struct Actors {
    next: u64,
    by_number: BTreeMap<u64, (Lifetime, Option<Actor>)>,
    woken: Arc<Woken>,
}

/// The actors to poll next, and the waker of the task that runs the scheduler.
#[derive(Default)]
struct Woken {
    actors: Mutex<BTreeSet<u64>>,
    outside: Mutex<Option<Waker>>,
}

/// Wakes one actor.
struct Alarm {
    number: u64,
    woken: Arc<Woken>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.woken.actors.lock().unwrap().insert(self.number);
        if let Some(waker) = &*self.woken.outside.lock().unwrap() {
            waker.wake_by_ref();
        }
    }
}

impl Scheduler {
    pub(crate) fn spawn(&self, life: Lifetime, actor: impl Future<Output = ()> + 'static) {
        let mut actors = self.0.borrow_mut();
        let number = actors.next;
        actors.next += 1;
        actors.by_number.insert(number, (life, Some(Box::pin(actor))));
        actors.woken.actors.lock().unwrap().insert(number);
    }

    /// Drops the actors that end with the process.
    pub(crate) fn kill_process(&self) {
        let (dead, alive) = {
            let mut actors = self.0.borrow_mut();
            let all = std::mem::take(&mut actors.by_number);
            all.into_iter().partition(|(_, (life, _))| *life == Lifetime::Process)
        };
        let dead: BTreeMap<u64, (Lifetime, Option<Actor>)> = dead;
        self.0.borrow_mut().by_number = alive;
        // Dropping an actor may call into the scheduler.
        drop(dead);
    }

    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.0.borrow_mut().by_number);
        drop(all);
    }

    /// Runs actors until `done` returns true. `machine` runs a step of the parts that are not actors, if there is
    /// one to run, and returns whether it did. Time advances only when neither `machine` nor any actor can proceed.
    pub(crate) async fn run(
        &self,
        random: &RefCell<Random>,
        mut machine: impl FnMut() -> bool,
        done: impl Fn() -> bool,
    ) {
        let mut steps = 0;
        let running = poll_fn(|cx| {
            *self.0.borrow().woken.outside.lock().unwrap() = Some(cx.waker().clone());
            loop {
                if done() {
                    return Poll::Ready(());
                }
                steps += 1;
                assert!(steps < MAX_STEPS, "the simulation does not end");
                let idle = self.0.borrow().woken.actors.lock().unwrap().is_empty();
                if (idle || random.borrow_mut().one_in(3)) && machine() {
                    continue;
                }
                let Some(number) = self.choose(random) else {
                    return Poll::Pending;
                };
                self.poll(number);
            }
        });
        tokio::task::coop::unconstrained(running).await;
    }

    fn choose(&self, random: &RefCell<Random>) -> Option<u64> {
        let actors = self.0.borrow();
        let mut woken = actors.woken.actors.lock().unwrap();
        if woken.is_empty() {
            return None;
        }
        let index = random.borrow_mut().below(woken.len() as u64) as usize;
        let number = *woken.iter().nth(index)?;
        woken.remove(&number);
        Some(number)
    }

    fn poll(&self, number: u64) {
        let (taken, woken) = {
            let mut actors = self.0.borrow_mut();
            let taken = actors.by_number.get_mut(&number).and_then(|(_, actor)| actor.take());
            (taken, actors.woken.clone())
        };
        let Some(mut actor) = taken else {
            return;
        };
        let waker = Waker::from(Arc::new(Alarm { number, woken }));
        let finished = actor.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut actors = self.0.borrow_mut();
        if finished {
            actors.by_number.remove(&number);
        } else if let Some((_, slot)) = actors.by_number.get_mut(&number) {
            *slot = Some(actor);
            return;
        }
        // The actor has finished, or has killed its own process.
        drop(actors);
        drop(actor);
    }
}
