//! The client of the resume protocol, against a gateway in memory that does whatever a network and a gateway can do.
//! Time is tokio's, and stands still while anything can go on, except with TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gateway;
mod giving_up;
mod limited;
mod random;
mod sending;
mod tls;
mod view;

use std::time::Duration;

use bytes::Bytes;
use gateway::{Fault, Gateway, Refuse, Script, TOKEN, faulty};
use gateway_client::resume::client::{Error, Event, Lost, Options, ResumeClient};
use gateway_client::resume::{NotRecovered, Start};
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Cursor, Epoch, Seq};
use tokio::time::{Instant, timeout};
use view::View;

/// Reads to the end and checks that it is all of the log.
async fn read_all(gateway: &Gateway, options: Options) -> View {
    let mut client = ResumeClient::new(options).unwrap();
    let mut view = View::default();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(gateway);
    view
}

#[tokio::test(start_paused = true)]
async fn every_entry_comes_once_in_order_and_then_the_end() {
    let gateway = Gateway::with_entries(5);
    gateway.end();
    let view = read_all(&gateway, gateway.options()).await;
    assert_eq!(view.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(view.connections, 1);
    let asked = &gateway.asked()[0];
    assert!(asked.path_and_query.starts_with("/base/api/kernels/"), "{asked:?}");
    assert!(
        asked
            .path_and_query
            .ends_with("/channels?session_id=a%20session%2F1&resume=start"),
        "{asked:?}"
    );
    assert_eq!(asked.authorization.as_deref(), Some("token t0ps3cret"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_byte_costs_nothing() {
    let mut cut = 0;
    loop {
        let gateway = Gateway::with_entries(4);
        gateway.lose_one();
        gateway.say(5);
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
    assert!(cut > 1000, "it was cut {cut} times");
}

#[tokio::test(start_paused = true)]
async fn nothing_that_is_not_the_next_entry_is_handed_on() {
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
            matches!(view.disconnects[..], [Lost::Violation(_)]),
            "{fault:?}: {:?}",
            view.disconnects
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_is_passed_over() {
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
async fn a_client_in_another_process_goes_on_from_the_cursor() {
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
async fn who_connected_at_the_head_misses_nothing_that_comes_later() {
    let gateway = Gateway::with_entries(3);
    let mut client = ResumeClient::connect(gateway.options().with_start(Start::Head))
        .await
        .unwrap();
    client.disconnect();
    gateway.say(3);
    gateway.end();
    let mut view = View::default();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(&gateway);
    assert_eq!(view.seqs(), [4]);
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_leads_nowhere_is_told_and_reading_begins_anew() {
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
        let asked = gateway.options().with_start(start);
        let mut client = ResumeClient::connect(asked).await.unwrap();
        let Start::After(cursor) = start else { unreachable!() };
        assert_eq!(
            client.cursor(),
            Some(cursor),
            "nobody goes on elsewhere without being told"
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
async fn a_log_that_lost_its_end_or_was_made_anew_is_told_too() {
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
    gateway.renew();
    gateway.say(1);
    gateway.end();
    while let Some(event) = client.next().await.unwrap() {
        view.take(event, &client);
    }
    view.check(&gateway);
    assert_eq!(view.not_recovered, [NotRecovered::Ahead, NotRecovered::Epoch]);
    assert_eq!(view.seqs(), [1]);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_begin_anew_once_something_came() {
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
            // Each was kept.
            assert!(
                last.elapsed() >= *pause && last.elapsed() < *pause + Duration::from_millis(10) || !pauses_now(&event)
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
    assert!(ratios.iter().any(|ratio| *ratio != ratios[0]), "all alike: {ratios:?}");
}

fn pauses_now(event: &Event) -> bool {
    matches!(
        event,
        Event::Disconnected {
            reason: Lost::Unreachable(_),
            ..
        }
    )
}

#[tokio::test(start_paused = true)]
async fn silence_is_taken_for_death_and_a_ping_for_life() {
    let gateway = Gateway::with_entries(2);
    gateway.script([faulty(2, Fault::Silence)]);
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let begun = Instant::now();
    let mut view = View::default();
    while view.disconnects.is_empty() {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    assert_eq!(view.disconnects, [Lost::Silent(Duration::from_secs(90))]);
    assert!(begun.elapsed() >= Duration::from_secs(90) && begun.elapsed() < Duration::from_secs(91));
    while view.seqs().len() < 2 {
        view.take(client.next().await.unwrap().unwrap(), &client);
    }
    // Nothing but Pings for an hour.
    timeout(Duration::from_secs(3600), client.next()).await.unwrap_err();
    gateway.end();
    assert!(client.next().await.unwrap().is_none());
    assert_eq!(view.connections, 2);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_read_for_hours_goes_on_where_it_was() {
    let gateway = Gateway::with_entries(200);
    gateway.end();
    // What is on the way is not all.
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
async fn a_message_of_a_hundred_megabytes_passes_and_one_beyond_the_limit_is_an_error() {
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
    assert_eq!(client.next().await.unwrap_err(), Error::TooLarge { limit: 50 << 20 });
}

#[test]
fn the_token_is_in_no_text() {
    let options = Gateway::new().options();
    assert!(!format!("{options:?}").contains(TOKEN));
    let mut in_url = options.clone();
    in_url.url = format!("http://host/?token={TOKEN}");
    let error = ResumeClient::new(in_url).err().unwrap();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
    let error = ResumeClient::new(options.with_token(format!("{TOKEN}\n")))
        .err()
        .unwrap();
    assert_eq!(error, Error::InvalidToken);
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
}
