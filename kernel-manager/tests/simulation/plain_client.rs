//! Plain Jupyter clients, which know only their session, and the gateway's end of their connections: unacknowledged
//! entries are sent again after a reconnect.

use std::collections::BTreeMap;
use std::rc::Rc;

use jupyter_protocol::{Channel, WireMessage};
use kernel_log::ReadError;
use kernel_manager::fold::{Fold, FoldLimits};
use tokio::sync::mpsc;

use super::scheduler::Lifetime;
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
    /// Closes once the gateway has handled everything that the client sent.
    handled: mpsc::Receiver<()>,
}

async fn connect(world: &Rc<World>, session: &str) -> Connection {
    let process = world.process().await;
    let kernel = process.simulated.kernel().clone();
    drop(process);
    let window = world.choose(&[1, 3, 20, 200]);
    let (to_client, down) = mpsc::channel(window);
    let (up, mut from_client) = mpsc::channel(window);
    let mut attachment = kernel.attach(session);
    let client = attachment.client();
    let (handling, handled) = mpsc::channel(1);
    world.scheduler.spawn(Lifetime::Process, async move {
        let _handling = handling;
        while let Some(received) = from_client.recv().await {
            match received {
                Up::Pong(seq) => client.acknowledge(kernel_log::Seq(seq)),
                Up::Message(channel, message) => drop(client.send(channel, message).await),
            }
        }
    });
    let client = attachment.client();
    world.scheduler.spawn(Lifetime::Process, async move {
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
    Connection { down, up, handled }
}

/// Connects, sends requests, disconnects and stalls at random until fault injection ends. Then it stays connected,
/// reads, and only repeats requests and answers questions.
pub(crate) async fn run(world: Rc<World>, number: u64) {
    let session = format!("plain{number}");
    let mut asked = Vec::new();
    let mut answers = 0;
    let calm = world.calm.subscribe();
    loop {
        let mut connection = connect(&world, &session).await;
        world.trace(format_args!("{session} is connected"));
        let life = world.choose(&[3, 20, 100]);
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
            // Repeat requests for which the client has received nothing, and sometimes others.
            let again = asked.iter().filter(|request| {
                let id = request.header_ref().unwrap().msg_id.to_string();
                !world.screens.borrow().contains_key(&id) && world.one_in(if is_calm { 1 } else { 3 })
                    || !is_calm && world.one_in(200)
            });
            for request in again {
                let _ = connection.up.try_send(Up::Message(Channel::Shell, request.clone()));
            }
            let received = connection.down.recv();
            // Answer an input request once no other message has arrived for a while.
            let seconds = if question.is_some() { 2 } else { 30 };
            let received = tokio::time::timeout(std::time::Duration::from_secs(seconds), received).await;
            match received {
                Ok(Some(Down::Message(channel, message))) => {
                    if show(&world, &asked, channel, &message) && channel == Channel::Stdin {
                        check_not_answered(&world, &message);
                        question = Some(message);
                    }
                }
                Ok(Some(Down::Ping(seq))) => {
                    world.trace(format_args!("{session} has all up to {seq}"));
                    // The acknowledgement may be delayed or missing.
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
                        // The client itself shows the answer after the prompt.
                        if let Some(screen) = world.screens.borrow_mut().get_mut(&parent) {
                            screen.apply(Channel::Stdin, &answer);
                        }
                    }
                }
            }
            let stall = world.choose(&[1, 1, 1, 1, 1, 1, 1, 100, 100, 20_000]);
            if !is_calm {
                world.pause(stall).await;
            }
        }
        world.trace(format_args!("{session} is cut"));
        let Connection { down, up, mut handled } = connection;
        drop((down, up));
        if answered {
            // Wait, because the gateway could repeat the question otherwise.
            let _ = handled.recv().await;
        }
        let away = world.choose(&[1, 1_000, 200_000]);
        world.pause(away).await;
    }
}

/// Checks that an answered input request is not repeated, unless the log lacks the answer or the request.
fn check_not_answered(world: &World, question: &WireMessage) {
    let id = question.header_ref().unwrap().msg_id;
    let request = question.parent_ref().unwrap().msg_id;
    if let Some(answer) = world.answers.borrow().get(&*id) {
        let lacks = [answer, &*request].map(|id| world.disk.has_refused_request(id));
        assert!(lacks.contains(&true), "{id} of {request} is asked again");
    }
}

/// Shows a message if it belongs to one of the client's requests, and returns whether it does.
fn show(world: &World, asked: &[WireMessage], channel: Channel, message: &WireMessage) -> bool {
    let parent = message.parent_ref().unwrap().msg_id.to_string();
    let is_own = asked
        .iter()
        .any(|request| request.header_ref().unwrap().msg_id == parent);
    if is_own {
        let content = String::from_utf8_lossy(message.content());
        world.trace(format_args!("{parent} shows {channel} {content}"));
        let mut screens = world.screens.borrow_mut();
        let screen = screens
            .entry(parent)
            .or_insert_with(|| Fold::new(FoldLimits::default()));
        screen.apply(channel, message);
    }
    is_own
}

/// Outputs that the clients show, by request.
pub(crate) type Screens = BTreeMap<String, Fold>;
