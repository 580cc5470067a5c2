//! Lost connections to a running kernel. The fake provider's kernel listens on TCP ports behind proxies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;
mod proxy;
#[path = "../rewired/mod.rs"]
mod rewired;

use std::sync::Arc;

use jupyter_protocol::content::{ExecuteRequest, InputReply, KernelInfoRequest};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, KernelId};
use kernel_log::{Entry, LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::simulation::SimulatedKernel;
use kernel_manager::{ExecutionState, ExecutionStatus, Executions, KernelEventKind, SendError};
use kernel_provider::ExitCause;

use fixture::{CHANNELS, Fixture, SESSION, is_disconnected, msg_type, outputs, parent, soon, text};
use proxy::Proxy;

#[tokio::test]
async fn a_lost_iopub_connection_is_logged_and_later_output_arrives() {
    let mut fixture = Fixture::new(0).await;
    let id = fixture.execute("wait").await;
    let mut seen = fixture.until(|entry| msg_type(entry) == "stream").await;
    assert_eq!(outputs(&seen, &id), "before");

    let iopub = fixture.proxy(Channel::Iopub);
    let before = iopub.count();
    iopub.cut();
    iopub.reconnected(before).await;
    iopub.release();
    // The kernel welcomes the new subscriber even while it is busy.
    let entries = fixture.until_resubscribed().await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    assert_eq!(*fixture.kernel.state().borrow(), ExecutionState::Busy);

    fixture.go.notify_one();
    seen = fixture.until_done(&id).await;
    assert_eq!(outputs(&seen, &id), "after");
    fixture.until_state(ExecutionState::Idle).await;
    assert_eq!(fixture.run("next").await, "next");
}

#[tokio::test]
async fn repeated_reconnects_are_logged_as_one_gap() {
    let mut fixture = Fixture::new(0).await;
    let iopub = fixture.proxy(Channel::Iopub);
    for _ in 0..3 {
        let before = iopub.count();
        iopub.cut();
        iopub.reconnected(before).await;
    }
    iopub.release();
    let entries = fixture.until_resubscribed().await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    // The recorder requests the idle kernel's state, because a status message may have been lost.
    fixture.until_state(ExecutionState::Idle).await;
    assert_eq!(fixture.run("next").await, "next");
}

#[tokio::test]
async fn requests_wait_while_any_socket_reconnects() {
    let mut fixture = Fixture::new(0).await;
    let cuts: [&[Channel]; 5] = [
        &CHANNELS,
        &[Channel::Shell],
        &[Channel::Control],
        &[Channel::Stdin],
        &[Channel::Iopub],
    ];
    for lost in cuts {
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| fixture.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        // A new connection shows that the recorder noticed the loss.
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        let (asked, asking) = fixture.send(Channel::Shell, ExecuteRequest::new("ask").into());
        let (informed, informing) = fixture.send(Channel::Control, KernelInfoRequest::default().into());
        let mut sending = std::pin::pin!(async { tokio::join!(asking, informing) });
        let sent = futures::poll!(&mut sending);
        assert!(sent.is_pending(), "{lost:?}: {sent:?}");
        for proxy in &proxies {
            proxy.release();
        }
        let sent = soon(sending).await;
        assert!(matches!(sent, (Ok(()), Ok(()))), "{lost:?}: {sent:?}");

        // The recorder sends requests after a while even without a welcome on iopub. So wait for the welcome, or the
        // kernel's output could be missed.
        let (mut asks, mut is_subscribed) = (false, !lost.contains(&Channel::Iopub));
        let mut seen = fixture
            .until(|entry| {
                asks |= msg_type(entry) == "input_request";
                is_subscribed |= msg_type(entry) == "iopub_welcome";
                asks && is_subscribed
            })
            .await;
        let answer = InputReply {
            value: "Ada".to_owned(),
            ..InputReply::default()
        };
        let (_, answering) = fixture.send(Channel::Stdin, answer.into());
        soon(answering).await.unwrap();
        seen.extend(fixture.until_done(&asked).await);
        assert_eq!(outputs(&seen, &asked), "Ada", "{lost:?}");
        let on_control = |entry: &Entry| entry.channel() == Channel::Control && parent(entry) == informed;
        if !seen.iter().any(on_control) {
            fixture.until(on_control).await;
        }
        // Replies over the new connections still go to the session of their request.
        let replies = seen
            .iter()
            .filter(|entry| entry.origin() == Origin::Kernel && entry.channel() != Channel::Iopub);
        for reply in replies.filter(|entry| parent(entry) == asked || parent(entry) == informed) {
            assert_eq!(reply.session(), SESSION, "{lost:?}: {}", msg_type(reply));
        }
    }
}

#[tokio::test]
async fn only_executions_that_ended_while_disconnected_get_synthetic_messages() {
    let mut fixture = Fixture::new(0).await;
    let cuts: [&[Channel]; 3] = [&[Channel::Shell, Channel::Iopub], &[Channel::Shell], &[Channel::Iopub]];
    for lost in cuts {
        let ends_meanwhile = fixture.execute("wait").await;
        fixture.until(|entry| msg_type(entry) == "stream").await;
        let notifies = fixture.execute("notify").await;
        let goes_on = fixture.execute("wait").await;
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| fixture.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        fixture.go.notify_one();
        soon(fixture.reached.notified()).await;
        // This request waits for the connection, and its execution is already in the index.
        let (waits, waiting) = fixture.send(Channel::Shell, ExecuteRequest::new("later").into());
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending(), "{lost:?}");
        for proxy in &proxies {
            proxy.release();
        }
        soon(waiting).await.unwrap();
        // The execution of a request that the kernel still has is not ended.
        let executions = fixture.kernel.executions();
        assert!(
            executions.get(&goes_on).await.unwrap().unwrap().ended.is_none(),
            "{lost:?}"
        );
        let mut seen = Vec::new();
        if lost.contains(&Channel::Iopub) {
            // Wait for the subscription, because later output could be missed otherwise.
            seen.extend(fixture.until_resubscribed().await);
        }
        fixture.go.notify_one();
        seen.extend(fixture.until_done(&waits).await);
        assert_eq!(outputs(&seen, &waits), "later", "{lost:?}");

        let is_synthetic = |entry: &Entry| entry.origin() == Origin::Lifecycle && parent(entry) == ends_meanwhile;
        // The messages that replace those that the recorder missed.
        let expected: &[(Channel, &str)] = match lost {
            [Channel::Shell] => &[(Channel::Iopub, "stream"), (Channel::Shell, "execute_reply")],
            [Channel::Iopub] => &[(Channel::Iopub, "stream"), (Channel::Iopub, "status")],
            _ => &[
                (Channel::Iopub, "stream"),
                (Channel::Shell, "execute_reply"),
                (Channel::Iopub, "status"),
            ],
        };
        let last = expected.last().unwrap().1;
        let is_last = |entry: &Entry| is_synthetic(entry) && msg_type(entry) == last;
        if !seen.iter().any(is_last) {
            seen.extend(fixture.until(is_last).await);
        }
        let synthetic: Vec<(Channel, String)> = seen
            .iter()
            .filter(|entry| is_synthetic(entry))
            .map(|entry| (entry.channel(), msg_type(entry)))
            .collect();
        let mut synthetic: Vec<(Channel, &str)> = synthetic
            .iter()
            .map(|(channel, msg_type)| (*channel, &**msg_type))
            .collect();
        // There are two stderr notices if the recorder reported missing output before it knew that the execution had
        // ended.
        synthetic.dedup();
        assert_eq!(synthetic, expected, "{lost:?}");
        for entry in seen.iter().filter(|entry| is_synthetic(entry)) {
            assert!(fixture.attachment.client().delivers(entry), "{lost:?}");
        }
        let status = async |id: &str| executions.get(id).await.unwrap().unwrap().status;
        // With only iopub lost, the reply arrived and only the idle status is missing.
        let expected_status = if lost == [Channel::Iopub] {
            ExecutionStatus::Ok
        } else {
            ExecutionStatus::Lost
        };
        assert_eq!(status(&ends_meanwhile).await, expected_status, "{lost:?}");
        assert_eq!(status(&waits).await, ExecutionStatus::Ok, "{lost:?}");
        // The kernel may have replied before it accepted the new connection.
        let known = [ExecutionStatus::Ok, ExecutionStatus::Lost];
        assert!(known.contains(&status(&goes_on).await), "{lost:?}");
        for id in [ends_meanwhile, notifies, goes_on, waits] {
            assert!(executions.get(&id).await.unwrap().unwrap().ended.is_some(), "{lost:?}");
        }
    }
}

/// Multi-threaded, so that some requests go to sockets whose other end has closed but is not yet known to be closed.
#[tokio::test(flavor = "multi_thread")]
async fn sending_does_not_fail_while_a_dead_kernel_is_restarted() {
    const DEATHS: u32 = 20;
    let mut fixture = Fixture::new(DEATHS).await;
    let mut events = fixture.manager.events();
    for _ in 0..DEATHS {
        fixture.fake.end(fixture.kernel.id(), ExitCause::Signal(9));
        loop {
            let (_, sending) = fixture.send(Channel::Shell, KernelInfoRequest::default().into());
            soon(sending)
                .await
                .expect("the request did not wait for the next process");
            if let Ok(event) = events.try_recv()
                && event.kind == KernelEventKind::Restarted
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(fixture.run("next").await, "next");
    }
}

#[tokio::test]
async fn a_waiting_request_fails_when_its_kernel_dies() {
    let fixture = Fixture::new(0).await;
    let shell = fixture.proxy(Channel::Shell);
    let before = shell.count();
    shell.cut();
    shell.reconnected(before).await;
    let (_, sending) = fixture.send(Channel::Shell, ExecuteRequest::new("never").into());
    let mut sending = std::pin::pin!(sending);
    assert!(futures::poll!(&mut sending).is_pending());
    fixture.fake.end(fixture.kernel.id(), ExitCause::OutOfMemory);
    assert!(matches!(soon(sending).await, Err(SendError::Dead)));
}

#[tokio::test]
async fn output_that_may_be_in_flight_at_a_kernels_death_is_logged_as_a_gap() {
    let mut fixture = Fixture::new(0).await;
    fixture.proxy(Channel::Iopub).hides_close.send_replace(true);
    fixture.fake.end(fixture.kernel.id(), ExitCause::OutOfMemory);
    let entries = fixture.until(|entry| text(entry).contains("\"dead\"")).await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_cannot_be_sent_is_lost() {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let (requests, kernel_side) = tokio::sync::mpsc::channel(1);
    let simulated = SimulatedKernel::attach(log.clone(), &requests).await.unwrap();
    // The connection to the kernel is lost.
    drop(kernel_side);
    let message = Message::new(ExecuteRequest::new("1"), "s");
    let msg_id = message.header.msg_id.clone();
    let sent = simulated
        .kernel()
        .send(&"s".into(), Channel::Shell, message.to_wire())
        .await;
    assert!(matches!(sent, Err(SendError::Socket(_))), "{sent:?}");
    log.flushed().await;
    let execution = Executions::of(log.clone()).get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Lost);
    assert!(execution.reply.is_some() && execution.idle.is_some());
}
