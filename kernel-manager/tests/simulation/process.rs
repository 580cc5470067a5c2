//! The simulated gateway process: the library's own code, run by the simulation's actors in place of a server's tasks.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use kernel_log::{LogOptions, Logs, ReadError, Seq};
use kernel_manager::simulation::SimulatedKernel;
use tokio::sync::mpsc;

use super::scheduler::Lifetime;
use super::world::{Process, World};

/// Starts a process.
pub(crate) async fn start(world: &Rc<World>, number: u64) {
    let mut options = LogOptions::default();
    options.memory_bytes = world.choose(&[1, 2_000, 100_000]);
    options.waiting_bytes = world.choose(&[1, 2_000, 100_000]);
    options.stored_bytes = world.choose(&[20_000, 1 << 30, 1 << 30]);
    let (logs, stepper) = Logs::stepped(Arc::new(world.disk.clone()), options);
    let log = logs.open(world.id).await.unwrap();
    world.trace(format_args!(
        "process {number} finds {} to {}",
        log.earliest(),
        log.head()
    ));
    let requests = world.requests.borrow().clone();
    let simulated = SimulatedKernel::attach(log.clone(), &requests).await.unwrap();
    let window = world.choose(&[1, 4, 100]);
    let (iopub, mut published) = mpsc::channel(window);
    let (replies, mut replied) = mpsc::channel(window);
    let process = Rc::new(Process {
        simulated,
        iopub,
        replies,
    });
    world.stepper.replace(Some(stepper));
    world.scheduler.spawn(Lifetime::Process, {
        let (process, log) = (process.clone(), log.clone());
        async move {
            let mut batch = Vec::new();
            loop {
                log.room().await;
                let Some(first) = published.recv().await else { return };
                batch.push(first);
                while batch.len() < 8
                    && let Ok(next) = published.try_recv()
                {
                    batch.push(next);
                }
                process.simulated.publish(&batch);
                batch.clear();
            }
        }
    });
    world.scheduler.spawn(Lifetime::Process, {
        let (process, log) = (process.clone(), log.clone());
        async move {
            loop {
                log.room().await;
                let Some((channel, message)) = replied.recv().await else {
                    return;
                };
                process.simulated.reply(channel, message);
            }
        }
    });
    world.scheduler.spawn(Lifetime::Process, {
        let (world, process) = (world.clone(), process.clone());
        async move {
            process.simulated.recover().await.unwrap();
            world.trace(format_args!("recovered"));
        }
    });
    world.process.send_replace(Some(process));
}

/// Reads the log from `position` until the process ends.
pub(crate) async fn reader(world: Rc<World>, number: u64, position: Rc<Cell<u64>>) {
    let log = world.process().await.simulated.kernel().log().clone();
    let mut reader = log.reader(Seq(position.get()));
    loop {
        match reader.next().await {
            Ok(Some(block)) => {
                for entry in block.entries() {
                    assert_eq!(entry.seq().0, position.get() + 1, "reader {number}");
                    world.saw(entry.seq().0, entry.channel(), &entry.message());
                    position.set(entry.seq().0);
                }
            }
            Ok(None) => return,
            Err(ReadError::Gap { first, last }) => {
                assert_eq!(first.0, position.get() + 1, "reader {number}");
                assert!(last >= first);
                world.trace(format_args!("reader {number} misses {first} to {last}"));
                position.set(last.0);
            }
            Err(error) => panic!("{error}"),
        }
        world.trace(format_args!("reader {number} is at {}", position.get()));
        let pause = world.choose(&[1, 1, 100, 10_000]);
        world.pause(pause).await;
    }
}
