//! Replays of executions to sessions that reconnect.

use std::sync::Arc;

use jupyter_protocol::content::InputReply;
use jupyter_protocol::{Channel, Message};
use kernel_log::{MemoryStore, Seq};
use kernel_manager::{AtClose, Kernel};

use crate::fixture::{Fixture, Screen, outputs, receive_all, request, soon, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnected_client_shows_the_same_outputs_as_an_undisturbed_one() {
    let code = "print a\nbar 10%\nbar 20%\nclear later\nprint b\nshow x\nprint c\nclear\nprint d\nbar 1\nbar 2\nchange z\nprint e";
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut manager = fixture.manager();
    let mut kernel = start(&manager).await;
    let mut cuts = 0;
    for acknowledged in 0..20 {
        for received in acknowledged..20 {
            let session = format!("s{acknowledged}-{received}");
            let mut attachment = kernel.attach(&session);
            let message = request(code, &session);
            let msg_id = message.header.msg_id.clone();
            soon(attachment.client().send(Channel::Shell, message.to_wire()))
                .await
                .unwrap();
            let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
            let all = receive_all(&mut attachment, Seq::START, execution.last).await;
            let mut undisturbed = Screen::of(&msg_id);
            for (_, channel, message) in &all {
                undisturbed.show(*channel, message);
            }
            let mut screen = Screen::of(&msg_id);
            for (_, channel, message) in all.iter().take(received) {
                screen.show(*channel, message);
            }
            let mut from = Seq::START;
            if let Some((seq, ..)) = acknowledged.checked_sub(1).and_then(|index| all.get(index)) {
                attachment.client().acknowledge(*seq);
                from = *seq;
            }
            drop(attachment);
            if received % 7 == 3 {
                (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
            }

            let mut attachment = kernel.attach(&session);
            while let Some(messages) = soon(attachment.replay()).await {
                for (channel, message) in messages.unwrap() {
                    screen.show(channel, &message);
                }
            }
            for (_, channel, message) in receive_all(&mut attachment, from, execution.last).await {
                screen.show(channel, &message);
            }
            assert_eq!(outputs(&screen.fold), outputs(&undisturbed.fold), "{session}");
            let kept = kernel.executions().outputs(&execution).await.unwrap();
            assert_eq!(outputs(&kept.fold), outputs(&undisturbed.fold), "{session}");
            assert!(screen.replies >= 1, "{session}: no reply");
            cuts += 1;
        }
    }
    assert_eq!(cuts, 210);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_input_request_is_replayed_and_an_answered_one_is_not() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let message = request("print before\nask name", "s");
    let msg_id = message.header.msg_id.clone();
    soon(attachment.client().send(Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    let asked = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    // The earlier output arrives over another socket and may follow the input request.
    let received = receive_all(&mut attachment, Seq::START, asked.open_input.unwrap()).await;
    let (_, _, question) = received
        .into_iter()
        .find(|(_, channel, _)| *channel == Channel::Stdin)
        .unwrap();
    attachment.client().acknowledge(asked.open_input.unwrap());
    drop(attachment);

    let mut attachment = kernel.attach("s");
    let again = soon(attachment.replay()).await.unwrap().unwrap();
    let asked_again: Vec<_> = again.iter().filter(|(channel, _)| *channel == Channel::Stdin).collect();
    assert_eq!(asked_again.len(), 1);
    assert_eq!(asked_again[0].1.header(), question.header());
    let answer = Message::new(InputReply::new("me"), "s");
    soon(attachment.client().send(Channel::Stdin, answer.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    drop(attachment);
    let mut attachment = kernel.attach("s");
    let last = soon(attachment.replay()).await.unwrap().unwrap();
    assert!(last.iter().all(|(channel, _)| *channel != Channel::Stdin));
    assert!(soon(attachment.replay()).await.is_none());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_input_request_is_not_replayed_even_if_nothing_was_acknowledged() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let attachment = kernel.attach("s");
    let message = request("ask name?\nwait", "s");
    let msg_id = message.header.msg_id.clone();
    soon(attachment.client().send(Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    let answer = Message::new(InputReply::new("me"), "s");
    soon(attachment.client().send(Channel::Stdin, answer.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.open_input.is_none()).await;

    let reconnect = async |kernel: &Arc<Kernel>| {
        let mut back = kernel.attach("s");
        let mut screen = Screen::of(&msg_id);
        let mut shown = soon(back.replay()).await.unwrap().unwrap();
        assert!(soon(back.replay()).await.is_none());
        while let Some(block) = back.recent().unwrap() {
            let client = back.client();
            let delivered = block.entries().filter(|entry| client.delivers(entry));
            shown.extend(delivered.map(|entry| (entry.channel(), entry.message())));
        }
        for (channel, message) in &shown {
            assert_ne!(*channel, Channel::Stdin, "asked again");
            screen.show(*channel, message);
        }
        serde_json::to_string(&screen.fold.outputs()).unwrap()
    };
    let asked_and_answered = r#"[{"output_type":"stream","name":"stdin","text":"name? me\n"}]"#;
    assert_eq!(reconnect(&kernel).await, asked_and_answered);
    // The manager is replaced before the first attachment is dropped, as in a crash.
    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    assert_eq!(reconnect(&kernel).await, asked_and_answered);
    drop(attachment);
    fixture.go.notify_one();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
