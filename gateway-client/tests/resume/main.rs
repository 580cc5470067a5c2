//! The client of the resume protocol against a gateway in memory, with failures of the network and the gateway. Except
//! with TLS, tokio's clock is paused: time advances only when every task waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod final_errors;
mod gateway;
mod limited;
mod random;
mod sending;
mod tls;
mod view;

use std::time::Duration;

use bytes::Bytes;
use gateway::{Fault, Gateway, Refuse, Script, TOKEN, faulty};
use gateway_client::resume::client::{ConnectionLost, Event, ResumeClient, ResumeError, ResumeOptions};
use gateway_client::resume::{NotRecovered, Start};
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Cursor, Epoch, Seq};
use tokio::time::{Instant, timeout};
use view::View;

/// Reads to the end, and checks that the client received the whole log.
async fn read_all(gateway: &Gateway, options: ResumeOptions) -> View {
    let mut client = ResumeClient::new(options).unwrap();
    let mut view = View::default();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(gateway);
    view
}

#[tokio::test(start_paused = true)]
async fn every_entry_arrives_once_in_order_before_the_end() {
    let gateway = Gateway::with_entries(5);
    gateway.end();
    let view = read_all(&gateway, gateway.options()).await;
    assert_eq!(view.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(view.connections, 1);
    let handshake = &gateway.handshakes()[0];
    assert!(
        handshake.path_and_query.starts_with("/base/api/kernels/"),
        "{handshake:?}"
    );
    assert!(
        handshake
            .path_and_query
            .ends_with("/channels?session_id=a%20session%2F1&resume=start"),
        "{handshake:?}"
    );
    assert_eq!(handshake.authorization.as_deref(), Some("token t0ps3cret"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_received_byte_loses_nothing() {
    let mut cut = 0;
    loop {
        let gateway = Gateway::with_entries(4);
        gateway.lose_one();
        gateway.append_output(5);
        gateway.end();
        gateway.script([Script {
            cut_after_written: Some(cut),
            ..Script::default()
        }]);
        let view = read_all(&gateway, gateway.options()).await;
        assert_eq!(view.seqs(), [1, 2, 3, 4, 5, 6], "cut after {cut} bytes");
        if view.disconnects.is_empty() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 1000, "only {cut} cuts were tested");
}

#[tokio::test(start_paused = true)]
async fn invalid_frames_are_not_returned_and_cause_a_reconnect() {
    for fault in [
        Fault::Twice,
        Fault::Swapped,
        Fault::Missing,
        Fault::Binary(b"no entry"),
        Fault::Binary(b""),
        Fault::Text("{"),
        Fault::Text(r#"{"type":"gap","first":1,"last":9}"#),
        Fault::Text(r#"{"type":"gap","first":4,"last":3}"#),
        Fault::Text(r#"{"type":"end"}"#),
    ] {
        let gateway = Gateway::with_entries(6);
        gateway.end();
        gateway.script([faulty(4, fault.clone())]);
        let view = read_all(&gateway, gateway.options()).await;
        assert_eq!(view.seqs(), [1, 2, 3, 4, 5, 6], "{fault:?}");
        assert!(
            matches!(view.disconnects[..], [ConnectionLost::Violation(_)]),
            "{fault:?}: {:?}",
            view.disconnects
        );
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_notices_and_fields_are_ignored() {
    let gateway = Gateway::with_entries(3);
    gateway.end();
    gateway.script([faulty(2, Fault::Text(r#"{"type":"alive","x":1}"#))]);
    let view = read_all(&gateway, gateway.options()).await;
    assert_eq!((view.connections, view.seqs()), (1, vec![1, 2, 3]));
    let gateway = Gateway::with_entries(3);
    gateway.end();
    gateway.script([faulty(0, Fault::Text(r#"{"type":"later"}"#))]);
    assert_eq!(read_all(&gateway, gateway.options()).await.connections, 1);
}

#[tokio::test(start_paused = true)]
async fn another_client_resumes_from_a_stored_cursor() {
    let gateway = Gateway::with_entries(10);
    gateway.end();
    let mut cursors = vec![None];
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    assert_eq!(client.cursor().map(|cursor| cursor.seq), Some(Seq(0)));
    while let Some(event) = client.next().await.unwrap() {
        if matches!(event, Event::Entry(_)) {
            cursors.push(client.cursor());
        }
    }
    for (read, cursor) in cursors.iter().enumerate() {
        let start = cursor.map_or(Start::Earliest, |cursor| cursor.to_string().parse().unwrap());
        let view = read_all(&gateway, gateway.options().with_start(start)).await;
        let rest: Vec<u64> = (read as u64 + 1..=10).collect();
        assert_eq!(view.seqs(), rest);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_connected_at_the_head_receives_all_later_entries() {
    let gateway = Gateway::with_entries(3);
    let mut client = ResumeClient::connect(gateway.options().with_start(Start::Head))
        .await
        .unwrap();
    client.disconnect();
    gateway.append_output(3);
    gateway.end();
    let mut view = View::default();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(&gateway);
    assert_eq!(view.seqs(), [4]);
}

#[tokio::test(start_paused = true)]
async fn a_client_with_an_unusable_cursor_receives_the_reason_and_starts_over() {
    let gateway = Gateway::with_entries(9);
    gateway.trim(4);
    gateway.end();
    let after = |epoch, seq| Start::After(Cursor { epoch, seq: Seq(seq) });
    let epoch = gateway.epoch();
    for (start, reason) in [
        (after(epoch, 3), NotRecovered::Earliest),
        (after(epoch, 10), NotRecovered::Ahead),
        (after(Epoch::random(), 5), NotRecovered::Epoch),
    ] {
        let options = gateway.options().with_start(start);
        let mut client = ResumeClient::connect(options).await.unwrap();
        let Start::After(cursor) = start else { unreachable!() };
        assert_eq!(
            client.cursor(),
            Some(cursor),
            "the cursor changed before the client reported why"
        );
        let mut view = View::default();
        while let Some(event) = client.next().await.unwrap() {
            view.take(event, &client);
        }
        view.check(&gateway);
        assert_eq!(view.not_recovered, [reason]);
        assert_eq!(view.seqs(), [5, 6, 7, 8, 9]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_starts_over_when_the_log_lost_its_end_or_was_replaced() {
    let gateway = Gateway::with_entries(6);
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let mut view = View::default();
    while view.seqs().len() < 6 {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    gateway.truncate(4);
    while view.not_recovered.is_empty() {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    gateway.replace_log();
    gateway.append_output(1);
    gateway.end();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(&gateway);
    assert_eq!(view.not_recovered, [NotRecovered::Ahead, NotRecovered::Epoch]);
    assert_eq!(view.seqs(), [1]);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_are_reset_by_a_received_entry() {
    let gateway = Gateway::with_entries(1);
    gateway.end();
    let refused = || Script {
        refuse: Some(Refuse::Unreachable),
        ..Script::default()
    };
    gateway.script((0..10).map(|_| refused()));
    gateway.script([faulty(2, Fault::Cut), refused()]);
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let mut pauses = Vec::new();
    let mut last = Instant::now();
    while let Some(event) = client.next().await.unwrap() {
        if let Some(pause) = pauses.last() {
            // The client waited for the whole pause.
            assert!(
                last.elapsed() >= *pause && last.elapsed() < *pause + Duration::from_millis(10)
                    || !is_unreachable(&event)
            );
        }
        if let Event::Disconnected { retry_in, .. } = event {
            pauses.push(retry_in);
            last = Instant::now();
        }
    }
    let expected = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 100, 200];
    assert_eq!(pauses.len(), expected.len());
    for (pause, expected) in pauses.iter().zip(expected) {
        let expected = Duration::from_millis(expected);
        assert!(
            *pause >= expected / 2 && *pause <= expected * 3 / 2,
            "{pause:?} for {expected:?}"
        );
    }
    let ratios: Vec<u128> = pauses
        .iter()
        .zip(expected)
        .map(|(pause, of)| pause.as_nanos() / of as u128)
        .collect();
    assert!(
        ratios.iter().any(|ratio| *ratio != ratios[0]),
        "the pauses are not random: {ratios:?}"
    );
}

fn is_unreachable(event: &Event) -> bool {
    matches!(
        event,
        Event::Disconnected {
            reason: ConnectionLost::Unreachable(_),
            ..
        }
    )
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_and_pings_keep_it() {
    let gateway = Gateway::with_entries(2);
    gateway.script([faulty(2, Fault::Silence)]);
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let begun = Instant::now();
    let mut view = View::default();
    while view.disconnects.is_empty() {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    assert_eq!(view.disconnects, [ConnectionLost::Silent(Duration::from_secs(90))]);
    assert!(begun.elapsed() >= Duration::from_secs(90) && begun.elapsed() < Duration::from_secs(91));
    while view.seqs().len() < 2 {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    // For an hour, only Pings arrive.
    timeout(Duration::from_secs(3600), client.next()).await.unwrap_err();
    gateway.end();
    assert!(client.next().await.unwrap().is_none());
    assert_eq!(view.connections, 2);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_pauses_reading_for_hours_loses_nothing() {
    let gateway = Gateway::with_entries(200);
    gateway.end();
    // The log does not fit into the connection's buffer.
    gateway.script([Script {
        window: 512,
        ..Script::default()
    }]);
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let mut view = View::default();
    view.take(client.next().await.unwrap().unwrap(), &client);
    tokio::time::sleep(Duration::from_secs(7200)).await;
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(&gateway);
    assert_eq!(view.seqs().len(), 200);
    assert_eq!(view.connections, 1, "{:?}", view.disconnects);
}

#[tokio::test(start_paused = true)]
async fn messages_up_to_the_limit_are_accepted() {
    let gateway = Gateway::new();
    let buffer = Bytes::from(vec![7; 100 << 20]);
    let parts = [r#"{"msg_id":"1","msg_type":"display_data"}"#, "{}", "{}", "{}"].map(Bytes::from);
    gateway.append(Channel::Iopub, WireMessage::from_parts(parts, [buffer.clone()]));
    gateway.end();
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    client.next().await.unwrap();
    let Some(Event::Entry(entry)) = client.next().await.unwrap() else {
        panic!("no entry")
    };
    assert_eq!(entry.message.buffers(), [buffer]);
    let mut options = gateway.options();
    options.max_message_bytes = 50 << 20;
    let mut client = ResumeClient::connect(options).await.unwrap();
    client.next().await.unwrap();
    assert_eq!(
        client.next().await.unwrap_err(),
        ResumeError::TooLarge { limit: 50 << 20 }
    );
}

#[test]
fn neither_errors_nor_debug_output_contain_the_token() {
    let options = Gateway::new().options();
    assert!(!format!("{options:?}").contains(TOKEN));
    let mut in_url = options.clone();
    in_url.url = format!("http://host/?token={TOKEN}");
    let error = ResumeClient::new(in_url).err().unwrap();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
    let error = ResumeClient::new(options.with_token(format!("{TOKEN}\n")))
        .err()
        .unwrap();
    assert_eq!(error, ResumeError::InvalidToken);
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
}
