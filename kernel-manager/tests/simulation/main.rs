//! A deterministic simulation of recorder, log, readers and clients with injected faults. A seed decides the order of
//! events: `KERNELMUX_SEED=…` repeats a failed run, `KERNELMUX_TRACE=1` prints its events, and `KERNELMUX_LONG=1` runs
//! 10,000 seeds.
//!
//! The simulation runs the library's own code, without its threads and sockets: the log is written step by step, and
//! the kernel is a task.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod check;
mod disk;
mod kernel;
#[path = "../../../gateway-client/tests/resume/limited.rs"]
mod limited;
mod plain_client;
mod process;
mod random;
mod resume;
mod scheduler;
mod world;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jupyter_protocol::Channel;
use random::Digest;
use scheduler::Lifetime;
use tokio::sync::mpsc;
use tokio::time::sleep;
use world::World;

const READERS: u64 = 3;
const PLAIN_CLIENTS: u64 = 2;
const RESUME_CLIENTS: u64 = 2;

/// Kills and restarts the process at random times, and makes the disk full or stalls it.
async fn inject_faults(world: Rc<World>) {
    let mut processes = 0;
    let positions: Vec<_> = (0..READERS).map(|_| Rc::new(Cell::new(0))).collect();
    let start = async |processes: &mut u64| {
        process::start(&world, *processes).await;
        *processes += 1;
        for (number, position) in (0..).zip(&positions) {
            world.scheduler.spawn(
                Lifetime::Process,
                process::reader(world.clone(), number, position.clone()),
            );
        }
    };
    start(&mut processes).await;
    for _ in 0..world.below(12) {
        let wait = world.choose(&[3, 50, 2_000, 30_000]);
        sleep(Duration::from_millis(world.below(wait))).await;
        match world.below(4) {
            0 => {
                let full = world.one_in(2);
                world.trace(format_args!("the disk is full: {full}"));
                world.disk.set_full(full);
            }
            1 => {
                let stalled = world.one_in(2);
                world.trace(format_args!("the disk stalls: {stalled}"));
                world.stalled.set(stalled);
            }
            2 => {
                world.trace(format_args!("killed"));
                world.kill();
            }
            _ => world.disk.tear_next(world.below(1000)),
        }
        if world.process.borrow().is_none() {
            world.pause(5_000).await;
            start(&mut processes).await;
        }
    }
    world.disk.set_full(false);
    world.stalled.set(false);
    // A pending torn write may still happen, which kills the process.
    let mut process = world.process.subscribe();
    if tokio::time::timeout(Duration::from_secs(600), process.wait_for(Option::is_none))
        .await
        .is_ok()
    {
        start(&mut processes).await;
    }
    world.trace(format_args!("calm"));
    world.calm.send_replace(true);
}

/// Sends requests at random times, each one to three times.
async fn requester(world: Rc<World>) {
    for number in 0..2 + world.below(6) {
        let request = world.request(&format!("r{number}"), "requester");
        for _ in 0..1 + world.below(3) {
            let process = world.process().await;
            let session = "requester".into();
            let kernel = process.simulated.kernel().clone();
            drop(process);
            let (done, mut sent) = mpsc::channel(1);
            world.scheduler.spawn(Lifetime::Process, {
                let request = request.clone();
                async move {
                    let _ = kernel.send(&session, Channel::Shell, request).await;
                    let _ = done.send(()).await;
                }
            });
            // If the process was killed, the request may or may not have been sent.
            let sent = sent.recv().await.is_some();
            world.trace(format_args!("r{number} was sent: {sent}"));
        }
        let pause = world.choose(&[1, 1_000, 60_000]);
        world.pause(pause).await;
    }
    world.finished.set(world.finished.get() + 1);
}

async fn simulate(seed: u64) -> Digest {
    let world = World::new(seed);
    let (requests, received) = mpsc::channel(100);
    world.requests.replace(requests);
    world
        .scheduler
        .spawn(Lifetime::World, kernel::run(world.clone(), 0, received));
    world.scheduler.spawn(Lifetime::World, inject_faults(world.clone()));
    world.scheduler.spawn(Lifetime::World, requester(world.clone()));
    for number in 0..PLAIN_CLIENTS {
        world
            .scheduler
            .spawn(Lifetime::World, plain_client::run(world.clone(), number));
    }
    for number in 0..RESUME_CLIENTS {
        world
            .scheduler
            .spawn(Lifetime::World, resume::run(world.clone(), number));
    }
    let over = Rc::new(Cell::new(false));
    world.scheduler.spawn(Lifetime::World, {
        let (world, over) = (world.clone(), over.clone());
        async move {
            let _ = world.calm.subscribe().wait_for(|calm| *calm).await;
            // Waits for the requester, then longer than any client needs to catch up.
            while world.finished.get() < 1 {
                sleep(Duration::from_secs(10)).await;
            }
            sleep(Duration::from_secs(900)).await;
            let process = world.process().await;
            let log = process.simulated.kernel().log().clone();
            check::log(&world, &log).await;
            over.set(true);
        }
    });
    world.scheduler.run(&world.random, || world.step(), || over.get()).await;
    // Breaks the reference cycle between the world and its actors.
    world.kill();
    world.scheduler.clear();
    world.digest()
}

/// On a panic, prints the failed seed and stops the other seeds.
struct ReportFailure<'a> {
    seed: u64,
    failed: &'a AtomicBool,
}

impl Drop for ReportFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.store(true, Ordering::Relaxed);
            println!("failed with KERNELMUX_SEED={}", self.seed);
        }
    }
}

fn run(seed: u64, failed: &AtomicBool) -> Digest {
    let _report = ReportFailure { seed, failed };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(simulate(seed))
}

#[test]
fn faults_neither_lose_nor_duplicate_messages() {
    let given = std::env::var("KERNELMUX_SEED").ok().map(|seed| seed.parse().unwrap());
    let long = std::env::var("KERNELMUX_LONG").is_ok_and(|long| long == "1");
    let count = match given {
        Some(_) => 1,
        None if long => 10_000,
        None => 200,
    };
    let first = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1);
    println!("running {count} seeds from {first}");
    // Each seed runs on one thread, so the number of threads does not affect its result.
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    let digest = run(seed, &failed);
                    if number.is_multiple_of(8) {
                        assert_eq!(run(seed, &failed), digest, "seed {seed} is not reproducible");
                    }
                }
            });
        }
    });
}
