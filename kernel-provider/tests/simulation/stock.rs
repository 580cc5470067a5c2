//! Clients that know only their session, as JupyterLab, and what the gateway does for them: what was handed on is
//! acknowledged; what was not, comes again.

use std::collections::BTreeMap;
use std::rc::Rc;

use jupyter_protocol::{Channel, WireMessage};
use kernel_provider::fold::{Fold, FoldLimits};
use kernel_provider::log::ReadError;
use tokio::sync::mpsc;

use super::scheduler::Life;
use super::world::World;

enum Down {
    Message(Channel, WireMessage),
    Ping(u64),
}

enum Up {
    Pong(u64),
    Message(WireMessage),
}

struct Connection {
    down: mpsc::Receiver<Down>,
    up: mpsc::Sender<Up>,
}

async fn connect(world: &Rc<World>, session: &str) -> Connection {
    let process = world.process().await;
    let kernel = process.simulated.kernel().clone();
    drop(process);
    let window = world.of(&[1, 3, 20, 200]);
    let (to_client, down) = mpsc::channel(window);
    let (up, mut from_client) = mpsc::channel(window);
    let mut attachment = kernel.attach(session);
    let client = attachment.client();
    world.scheduler.spawn(Life::Process, async move {
        while let Some(received) = from_client.recv().await {
            match received {
                Up::Pong(seq) => client.acknowledge(kernel_provider::log::Seq(seq)),
                Up::Message(message) => drop(client.send(Channel::Shell, message).await),
            }
        }
    });
    let client = attachment.client();
    world.scheduler.spawn(Life::Process, async move {
        let deliver = async |down| to_client.send(down).await;
        while let Some(messages) = attachment.replay().await {
            for (channel, message) in messages.unwrap() {
                if deliver(Down::Message(channel, message)).await.is_err() {
                    return;
                }
            }
        }
        loop {
            let block = tokio::select! {
                biased;
                () = to_client.closed() => return,
                block = attachment.next() => block,
            };
            let block = match block {
                Ok(Some(block)) => block,
                Ok(None) => return,
                Err(ReadError::Gap { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            for entry in block.entries().filter(|entry| client.delivers(entry)) {
                if deliver(Down::Message(entry.channel(), entry.message())).await.is_err() {
                    return;
                }
            }
            if deliver(Down::Ping(block.last().0)).await.is_err() {
                return;
            }
        }
    });
    Connection { down, up }
}

/// Connects, asks, cuts and stalls until it is calm, and reads on then.
pub(crate) async fn run(world: Rc<World>, number: u64) {
    let session = format!("stock{number}");
    let mut asked = Vec::new();
    let calm = world.calm.subscribe();
    loop {
        let mut connection = connect(&world, &session).await;
        world.trace(format_args!("{session} is connected"));
        let life = world.of(&[3, 20, 100]);
        let mut left = world.below(life);
        loop {
            let is_calm = *calm.borrow();
            if left == 0 && !is_calm {
                break;
            }
            left = left.saturating_sub(1);
            if !is_calm && asked.len() < 5 && world.one_in(6) {
                let request = world.request(&format!("{session}-{}", asked.len()), &session);
                asked.push(request);
            }
            // What it does not know to be there it asks again, and sometimes what it does.
            let again = asked.iter().filter(|request| {
                let id = request.header_ref().unwrap().msg_id.to_string();
                !world.screens.borrow().contains_key(&id) && world.one_in(if is_calm { 1 } else { 3 })
                    || world.one_in(200)
            });
            for request in again {
                let _ = connection.up.try_send(Up::Message(request.clone()));
            }
            let received = connection.down.recv();
            let received = tokio::time::timeout(std::time::Duration::from_secs(30), received).await;
            match received {
                Ok(Some(Down::Message(channel, message))) => show(&world, &asked, channel, &message),
                Ok(Some(Down::Ping(seq))) => {
                    world.trace(format_args!("{session} has all up to {seq}"));
                    // It may come too late, or not at all.
                    if is_calm || !world.one_in(4) {
                        let _ = connection.up.try_send(Up::Pong(seq));
                    }
                }
                Ok(None) => break,
                Err(_) => {}
            }
            let stall = world.of(&[1, 1, 1, 1, 1, 1, 1, 100, 100, 20_000]);
            if !is_calm {
                world.pause(stall).await;
            }
        }
        world.trace(format_args!("{session} is cut"));
        drop(connection);
        let away = world.of(&[1, 1_000, 200_000]);
        world.pause(away).await;
    }
}

fn show(world: &World, asked: &[WireMessage], channel: Channel, message: &WireMessage) {
    let parent = message.parent_ref().unwrap().msg_id.to_string();
    if asked
        .iter()
        .any(|request| request.header_ref().unwrap().msg_id == parent)
    {
        let content = String::from_utf8_lossy(message.content());
        world.trace(format_args!("{parent} shows {channel} {content}"));
        let mut screens = world.screens.borrow_mut();
        let screen = screens
            .entry(parent)
            .or_insert_with(|| Fold::new(FoldLimits::default()));
        screen.apply(channel, message);
    }
}

/// What each client shows of each of its executions.
pub(crate) type Screens = BTreeMap<String, Fold>;
