//! Clients that know only their session, as JupyterLab, and what the gateway does for them: what was handed on is
//! acknowledged; what was not, comes again.

use std::collections::BTreeMap;
use std::rc::Rc;

use jupyter_protocol::{Channel, WireMessage};
use kernel_log::ReadError;
use kernel_manager::fold::{Fold, FoldLimits};
use tokio::sync::mpsc;

use super::scheduler::Life;
use super::world::{World, message};

enum Down {
    Message(Channel, WireMessage),
    Ping(u64),
}

enum Up {
    Pong(u64),
    Message(Channel, WireMessage),
}

struct Connection {
    down: mpsc::Receiver<Down>,
    up: mpsc::Sender<Up>,
    /// Ends when nothing of what was sent is on its way any more.
    taken: mpsc::Receiver<()>,
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
    let (taking, taken) = mpsc::channel(1);
    world.scheduler.spawn(Life::Process, async move {
        let _taking = taking;
        while let Some(received) = from_client.recv().await {
            match received {
                Up::Pong(seq) => client.acknowledge(kernel_log::Seq(seq)),
                Up::Message(channel, message) => drop(client.send(channel, message).await),
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
    Connection { down, up, taken }
}

/// Connects, asks, cuts and stalls until it is calm, and reads on then.
pub(crate) async fn run(world: Rc<World>, number: u64) {
    let session = format!("stock{number}");
    let mut asked = Vec::new();
    let mut answers = 0;
    let calm = world.calm.subscribe();
    loop {
        let mut connection = connect(&world, &session).await;
        world.trace(format_args!("{session} is connected"));
        let life = world.of(&[3, 20, 100]);
        let mut left = world.below(life);
        let mut question: Option<WireMessage> = None;
        let mut answered = false;
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
                    || !is_calm && world.one_in(200)
            });
            for request in again {
                let _ = connection.up.try_send(Up::Message(Channel::Shell, request.clone()));
            }
            let received = connection.down.recv();
            // Who is asked reads first what else there is.
            let patience = if question.is_some() { 2 } else { 30 };
            let received = tokio::time::timeout(std::time::Duration::from_secs(patience), received).await;
            match received {
                Ok(Some(Down::Message(channel, message))) => {
                    if show(&world, &asked, channel, &message) && channel == Channel::Stdin {
                        asked_once(&world, &message);
                        question = Some(message);
                    }
                }
                Ok(Some(Down::Ping(seq))) => {
                    world.trace(format_args!("{session} has all up to {seq}"));
                    // It may come too late, or not at all.
                    if is_calm || !world.one_in(4) {
                        let _ = connection.up.try_send(Up::Pong(seq));
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    if let Some(question) = question.take() {
                        let id = format!("{session}-answer{answers}");
                        answers += 1;
                        let value = serde_json::json!({"value": id});
                        let answer = message(&id, "input_reply", &session, Some(&question), &value);
                        let up = Up::Message(Channel::Stdin, answer.clone());
                        if connection.up.try_send(up).is_err() {
                            break;
                        }
                        answered = true;
                        if world.one_in(2) {
                            left = 0;
                        }
                        let parent = question.parent_ref().unwrap().msg_id.to_string();
                        world.trace(format_args!("{parent} is answered"));
                        // It writes the answer beside the question itself.
                        if let Some(screen) = world.screens.borrow_mut().get_mut(&parent) {
                            screen.apply(Channel::Stdin, &answer);
                        }
                    }
                }
            }
            let stall = world.of(&[1, 1, 1, 1, 1, 1, 1, 100, 100, 20_000]);
            if !is_calm {
                world.pause(stall).await;
            }
        }
        world.trace(format_args!("{session} is cut"));
        let Connection { down, up, mut taken } = connection;
        drop((down, up));
        if answered {
            // Or it would be asked what it has answered.
            let _ = taken.recv().await;
        }
        let away = world.of(&[1, 1_000, 200_000]);
        world.pause(away).await;
    }
}

/// A question that has its answer is not put again, unless the log lacks the answer or what the question belongs to.
fn asked_once(world: &World, question: &WireMessage) {
    let id = question.header_ref().unwrap().msg_id;
    let request = question.parent_ref().unwrap().msg_id;
    if let Some(answer) = world.answers.borrow().get(&*id) {
        let lacks = [answer, &*request].map(|id| world.disk.has_refused_request(id));
        assert!(lacks.contains(&true), "{id} of {request} is asked again");
    }
}

/// Shows what belongs to its executions, which it tells by their requests. Whether this does.
fn show(world: &World, asked: &[WireMessage], channel: Channel, message: &WireMessage) -> bool {
    let parent = message.parent_ref().unwrap().msg_id.to_string();
    let is_of_its_own = asked
        .iter()
        .any(|request| request.header_ref().unwrap().msg_id == parent);
    if is_of_its_own {
        let content = String::from_utf8_lossy(message.content());
        world.trace(format_args!("{parent} shows {channel} {content}"));
        let mut screens = world.screens.borrow_mut();
        let screen = screens
            .entry(parent)
            .or_insert_with(|| Fold::new(FoldLimits::default()));
        screen.apply(channel, message);
    }
    is_of_its_own
}

/// What each client shows of each of its executions.
pub(crate) type Screens = BTreeMap<String, Fold>;
