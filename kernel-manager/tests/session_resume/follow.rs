//! Sessions that follow executions of other sessions, as a reopened notebook page does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jupyter_protocol::content::{Content, InputReply, Reply};
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_log::{Entry, MemoryStore, Origin, Seq};
use kernel_manager::{AtClose, Attachment, Kernel, is_follow_request};
use serde_json::{Map, json};

use crate::fixture::{Fixture, Screen, outputs, receive_all, request, soon, start, until};

/// The request to follow the execution.
pub(crate) fn follow_request(msg_id: &str, session: &str) -> WireMessage {
    let metadata = Map::from_iter([("kernelmux".to_owned(), json!({"follow": true}))]);
    let mut message = request("", session).with_metadata(metadata);
    message.header.msg_id = msg_id.to_owned();
    let message = message.to_wire();
    assert!(is_follow_request(&message));
    message
}

async fn follow(attachment: &Attachment, msg_id: &str) -> Vec<(Channel, WireMessage)> {
    soon(attachment.follow(&follow_request(msg_id, attachment.client().session()))).await
}

/// Sends code and returns its `msg_id`.
async fn run(kernel: &Arc<Kernel>, code: &str, session: &str) -> String {
    let message = request(code, session);
    soon(kernel.send(&session.into(), Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    message.header.msg_id
}

fn types(messages: &[(Channel, WireMessage)]) -> Vec<String> {
    let types = messages
        .iter()
        .map(|(_, message)| message.header_ref().unwrap().msg_type.into_owned());
    types.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_at_any_position_shows_each_output_once() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let code =
        "print a\nbar 10%\nbar 20%\nshow x\nclear later\nprint b\nshow x\nprint c\nchange y\nprint d\nbar 1\nprint e";
    let before = kernel.log().head();
    let msg_id = run(&kernel, code, "asker").await;
    let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    let expected = kernel.executions().outputs(&execution).await.unwrap();
    let mut positions = 0;
    for position in before.0..=execution.last.0 {
        let mut attachment = kernel.attach_at(&format!("follower {position}"), Seq(position));
        let shown = follow(&attachment, &msg_id).await;
        let first = &shown[0].1;
        let metadata: serde_json::Value = serde_json::from_slice(first.metadata()).unwrap();
        assert_eq!(metadata, json!({"kernelmux": {"replay": true}}));
        let mut screen = Screen::of(&msg_id);
        for (channel, message) in &shown {
            screen.show(*channel, message);
        }
        for (_, channel, message) in receive_all(&mut attachment, Seq(position), execution.last).await {
            screen.show(channel, &message);
        }
        assert_eq!(outputs(&screen.fold), outputs(&expected.fold), "at {position}");
        assert_eq!(screen.fold.execution_count(), Some(1), "at {position}");
        assert_eq!(screen.replies, 1, "at {position}");
        positions += 1;
    }
    assert!(positions > 12, "{positions}");
    assert_eq!(fixture.runs.load(Ordering::SeqCst), 1);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replay_has_the_input_the_outputs_and_the_end() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let msg_id = run(&kernel, "print a\nshow x\nfail it", "asker").await;
    let ended = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    let attachment = kernel.attach("follower");
    let shown = follow(&attachment, &msg_id).await;
    assert_eq!(
        types(&shown),
        [
            "status",
            "execute_input",
            "clear_output",
            "stream",
            "display_data",
            "error",
            "execute_reply",
            "status"
        ]
    );
    let messages: Vec<Message> = shown
        .iter()
        .map(|(_, message)| Message::from_wire(message).unwrap())
        .collect();
    let kernel_session = &messages[6].header.session;
    for message in &messages {
        assert_eq!(message.parent_header.as_ref(), Some(&ended.header));
        assert_eq!(&message.header.session, kernel_session);
    }
    let Content::ExecuteInput(input) = &messages[1].content else {
        panic!("{:?}", messages[1]);
    };
    assert_eq!(
        (&*input.code, input.execution_count),
        ("print a\nshow x\nfail it", Some(1))
    );
    let Content::DisplayData(display) = &messages[4].content else {
        panic!("{:?}", messages[4]);
    };
    assert_eq!(display.transient.display_id.as_deref(), Some("d"));

    // A queued execution has only its request.
    let running = run(&kernel, "wait", "asker").await;
    let queued = run(&kernel, "print later", "asker").await;
    until(&kernel, &running, |execution| execution.started.is_some()).await;
    until(&kernel, &queued, |_| true).await;
    let shown = follow(&kernel.attach("another follower"), &queued).await;
    assert_eq!(types(&shown), ["clear_output"]);
    fixture.go.notify_one();
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_execution_is_answered_with_an_error() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let attachment = kernel.attach("follower");
    let shown = follow(&attachment, "no such id").await;
    assert_eq!(types(&shown), ["execute_reply", "status"]);
    let reply = Message::from_wire(&shown[0].1).unwrap();
    assert_eq!(reply.parent_id(), "no such id");
    let Content::ExecuteReply(Reply::Error(error)) = reply.content else {
        panic!("{reply:?}");
    };
    assert_eq!(error.ename, "UnknownExecution");
    assert!(error.evalue.contains("run the code again"), "{}", error.evalue);
    // A follow request reaches neither the log nor the kernel, even if a client sends it.
    let client = attachment.client();
    soon(client.send(Channel::Shell, follow_request("x", "follower")))
        .await
        .unwrap();
    kernel.log().flushed().await;
    let mut reader = kernel.log().reader(Seq::START);
    while reader.position() < kernel.log().head() {
        let block = soon(reader.next()).await.unwrap().unwrap();
        assert!(block.entries().all(|entry| entry.session() != "follower"));
    }
    assert_eq!(fixture.runs.load(Ordering::SeqCst), 0);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_get_questions_and_replies_and_may_answer_even_with_a_new_manager() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut manager = fixture.manager();
    let mut kernel = start(&manager).await;
    let msg_id = run(&kernel, "ask first?\nask second?\nprint done", "asker").await;
    until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    let mut follower = kernel.attach("follower");
    let shown = follow(&follower, &msg_id).await;
    assert_eq!(types(&shown).last().unwrap(), "input_request");
    let answer = |value: &str| Message::new(InputReply::new(value), "follower").to_wire();
    soon(follower.client().send(Channel::Stdin, answer("1"))).await.unwrap();

    // The second question arrives while the follower is attached.
    let asked = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    let received = receive_all(&mut follower, asked.request, asked.open_input.unwrap()).await;
    let questions = received.iter().filter(|(_, channel, _)| *channel == Channel::Stdin);
    assert_eq!(questions.count(), 1);
    drop(follower);

    // A new manager restores the followers.
    (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    let mut follower = kernel.attach("follower");
    let again = soon(follower.replay()).await.unwrap().unwrap();
    assert_eq!(types(&again), ["status", "clear_output", "stream"]);
    // The session's position is before the question.
    let received = receive_all(&mut follower, Seq::START, asked.open_input.unwrap()).await;
    let questions = received.iter().filter(|(_, channel, _)| *channel == Channel::Stdin);
    assert_eq!(questions.count(), 1);
    soon(follower.client().send(Channel::Stdin, answer("2"))).await.unwrap();
    let ended = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    let mut asker = kernel.attach_at("asker", asked.request);
    for attachment in [&mut follower, &mut asker] {
        let received = receive_all(attachment, asked.request, ended.last).await;
        let replies = received.iter().filter(|(_, channel, _)| *channel == Channel::Shell);
        assert_eq!(replies.count(), 1);
    }
    // A session that does not follow the execution gets neither questions nor replies.
    let mut other = kernel.attach_at("other", asked.request);
    let received = receive_all(&mut other, asked.request, ended.last).await;
    assert!(received.iter().all(|(_, channel, _)| *channel == Channel::Iopub));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_may_not_have_arrived_is_repeated_after_a_reconnect() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut manager = fixture.manager();
    let mut kernel = start(&manager).await;
    let msg_id = run(&kernel, "print a", "asker").await;
    let ended = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    // The session answers a question, which shows that it has received all earlier messages.
    let mut follower = kernel.attach("follower");
    assert!(soon(follower.replay()).await.is_none());
    let seen = run(&kernel, "ask x", "follower").await;
    until(&kernel, &seen, |execution| execution.open_input.is_some()).await;
    let answer = Message::new(InputReply::new("1"), "follower").to_wire();
    soon(follower.client().send(Channel::Stdin, answer)).await.unwrap();
    until(&kernel, &seen, |execution| execution.ended.is_some()).await;

    follow(&follower, &msg_id).await;
    // Runs so many executions that the first one is no longer in memory, only in the log's index.
    let mut last = String::new();
    for _ in 0..300 {
        last = run(&kernel, "print b", "other").await;
    }
    until(&kernel, &last, |execution| execution.ended.is_some()).await;
    follower.client().acknowledge(kernel.log().head());
    for replaces in [false, true] {
        drop(follower);
        if replaces {
            (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
        }
        follower = kernel.attach("follower");
        let mut screen = Screen::of(&msg_id);
        while let Some(messages) = soon(follower.replay()).await {
            for (channel, message) in messages.unwrap() {
                if message.parent_ref().unwrap().msg_id == msg_id {
                    screen.show(channel, &message);
                }
            }
        }
        let expected = kernel.executions().outputs(&ended).await.unwrap();
        assert_eq!(outputs(&screen.fold), outputs(&expected.fold), "{replaces}");
        assert_eq!(screen.replies, 1);
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_may_follow_and_the_oldest_are_forgotten() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let msg_id = run(&kernel, "wait", "asker").await;
    until(&kernel, &msg_id, |execution| execution.started.is_some()).await;
    for number in 0..100 {
        let attachment = kernel.attach(&number.to_string());
        follow(&attachment, &msg_id).await;
        // Following again, also over another connection, changes nothing.
        follow(&attachment, &msg_id).await;
        follow(&kernel.attach(&number.to_string()), &msg_id).await;
    }
    follow(&kernel.attach("asker"), &msg_id).await;
    fixture.go.notify_one();
    let ended = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    let expected: Vec<String> = (68..100).map(|number| number.to_string()).collect();
    assert_eq!(ended.followers, expected);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_answer_counts_and_the_other_sessions_are_notified() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut manager = fixture.manager();
    let mut kernel = start(&manager).await;
    for replaces in [false, true] {
        let names = ["asker", "first", "second", "other"].map(|name| format!("{name} {replaces}"));
        let msg_id = run(&kernel, "ask one?\nask two?", &names[0]).await;
        let asked = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
        for follower in &names[1..3] {
            follow(&kernel.attach(follower), &msg_id).await;
        }
        if replaces {
            (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
        }
        let [mut asker, mut first, mut second, mut other] = names.each_ref().map(|name| {
            let attachment = kernel.attach_at(name, asked.request);
            (attachment, name)
        });
        // An attachment that tracks its own position does not restore the executions that its session followed in an
        // earlier manager, so follow again.
        for (attachment, _) in [&first, &second] {
            follow(attachment, &msg_id).await;
        }
        let received = receive_all(&mut first.0, asked.request, asked.open_input.unwrap()).await;
        let (_, _, question) = received
            .into_iter()
            .find(|(_, channel, _)| *channel == Channel::Stdin)
            .unwrap();
        let question = Message::from_wire(&question).unwrap();
        let answer = |value: &str, session: &str| {
            let message = Message::new(InputReply::new(value), session);
            message.child_of(&question).to_wire()
        };
        for (attachment, name) in [&first, &second, &asker] {
            let client = attachment.client();
            soon(client.send(Channel::Stdin, answer(name, name))).await.unwrap();
        }
        // The second question is still open, and is answered only by its own answer.
        let open = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
        let answered = Message::new(InputReply::new("last"), "x").to_wire();
        soon(kernel.send(&"x".into(), Channel::Stdin, answered)).await.unwrap();
        let ended = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
        let head = kernel.log().head();
        let shown = kernel.executions().outputs(&ended).await.unwrap();
        let stdin = format!("one? {}\ntwo? last\n", names[1]);
        let expected = json!({"output_type": "stream", "name": "stdin", "text": stdin});
        assert_eq!(serde_json::to_value(shown.fold.outputs().last()).unwrap(), expected);

        for ((attachment, name), notices) in [(&mut asker, 2), (&mut first, 1), (&mut second, 2), (&mut other, 0)] {
            let received = receive_all(attachment, asked.request, head).await;
            let is_answered = |message: &WireMessage| message.header_ref().unwrap().msg_type == "kernelmux_answered";
            let received_notices: Vec<_> = received
                .iter()
                .filter(|(_, _, message)| is_answered(message))
                .map(|(_, _, message)| message)
                .collect();
            assert_eq!(received_notices.len(), notices, "{name}");
            for message in &received_notices {
                assert_eq!(message.parent_ref().unwrap().msg_id, msg_id);
            }
            if notices == 2 {
                let content: serde_json::Value = serde_json::from_slice(received_notices[0].content()).unwrap();
                assert_eq!(content, json!({"input_request": question.header.msg_id}));
            }
        }
        assert!(open.open_input > asked.open_input);
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_to_a_new_manager_does_not_answer_the_next_question() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let mut kernel = start(&manager).await;
    let msg_id = run(&kernel, "ask one?\nprint one\nwait\nask two?", "asker").await;
    let first = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    let question = kernel.executions().question(&first).await.unwrap().unwrap();
    let question = Message::from_wire(&question).unwrap();
    let late = || Message::new(InputReply::new("1"), "x").child_of(&question).to_wire();
    let answers = |kernel: &Arc<Kernel>| {
        let (kernel, asked) = (kernel.clone(), first.request);
        async move {
            let mut reader = kernel.log().reader(asked);
            let mut answers = 0;
            while reader.position() < kernel.log().head() {
                let block = reader.next().await.unwrap().unwrap();
                answers += block
                    .entries()
                    .filter(|entry| entry.origin() == Origin::Client && entry.channel() == Channel::Stdin)
                    .count();
            }
            answers
        }
    };
    soon(kernel.send(&"x".into(), Channel::Stdin, late())).await.unwrap();
    assert_eq!(soon(answers(&kernel)).await, 1);
    // Wait until the kernel has read the answer, because it drops unread messages when the manager connects again.
    soon(async {
        let mut reader = kernel.log().reader(first.request);
        let is_output = |entry: Entry| {
            entry
                .message()
                .header_ref()
                .is_ok_and(|header| header.msg_type == "stream")
        };
        while !reader.next().await.unwrap().unwrap().entries().any(is_output) {}
    })
    .await;
    let manager = {
        let (manager, restored) = fixture.replace_manager(manager, kernel.id()).await;
        kernel = restored;
        manager
    };
    // Sending this late answer, which is dropped, waits until stdin is connected.
    soon(kernel.send(&"y".into(), Channel::Stdin, late())).await.unwrap();
    fixture.go.notify_one();
    let second = until(&kernel, &msg_id, |execution| execution.open_input > first.open_input).await;
    // The answer's parent is the first question, which the new manager has never seen.
    soon(kernel.send(&"y".into(), Channel::Stdin, late())).await.unwrap();
    kernel.log().flushed().await;
    assert_eq!(soon(answers(&kernel)).await, 1);
    let question = kernel.executions().question(&second).await.unwrap().unwrap();
    let question = Message::from_wire(&question).unwrap();
    let answer = Message::new(InputReply::new("2"), "y").child_of(&question).to_wire();
    soon(kernel.send(&"y".into(), Channel::Stdin, answer)).await.unwrap();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
