//! Failures that end a client, and failures after which it reconnects.

use gateway_client::resume::Hello;
use gateway_client::resume::client::{ConnectionLost, Event, ResumeClient, ResumeError, ResumeOptions, SendError};
use jupyter_protocol::KernelId;
use kernel_log::{Epoch, Seq};

use super::gateway::{Fault, Gateway, Refuse, Script, faulty, kernel_message};
use super::read_all;

async fn final_error(gateway: &Gateway) -> ResumeError {
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    loop {
        match client.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the client read the whole log without an error"),
            Err(error) => {
                let again = client.next().await.unwrap_err();
                assert_eq!(again, error);
                let message = kernel_message("interrupt_request", &serde_json::json!({}), &serde_json::json!({}));
                let refused = client.send(jupyter_protocol::Channel::Control, message);
                assert_eq!(refused, Err(SendError::Ended));
                return error;
            }
        }
    }
}

fn refusing(refuse: Refuse) -> Script {
    Script {
        refuse: Some(refuse),
        ..Script::default()
    }
}

#[tokio::test(start_paused = true)]
async fn some_statuses_are_final_and_others_are_not() {
    for status in [400, 401, 403, 404] {
        let gateway = Gateway::with_entries(1);
        gateway.script([refusing(Refuse::Status(status))]);
        let error = final_error(&gateway).await;
        assert_eq!(error, ResumeError::Refused { status });
        assert!(error.to_string().contains(&status.to_string()));
        assert_eq!(gateway.scripts_left(), 0);
    }
    for status in [200, 302, 408, 429, 500, 502, 503, 504] {
        let gateway = Gateway::with_entries(1);
        gateway.end();
        gateway.script([refusing(Refuse::Status(status))]);
        let view = read_all(&gateway, gateway.options()).await;
        assert_eq!(view.disconnects, [ConnectionLost::Status(status)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_the_subprotocol_is_final() {
    let gateway = Gateway::new();
    gateway.script([refusing(Refuse::Plain)]);
    assert_eq!(final_error(&gateway).await, ResumeError::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn some_close_codes_are_final_and_others_are_not() {
    let closing = |code| faulty(2, Fault::Close(code));
    for code in [1002, 1009] {
        let gateway = Gateway::with_entries(3);
        gateway.script([closing(Some(code))]);
        let reason = "a reason".to_owned();
        assert_eq!(final_error(&gateway).await, ResumeError::Closed { code, reason });
    }
    let gateway = Gateway::with_entries(3);
    gateway.script([closing(Some(4001))]);
    assert_eq!(final_error(&gateway).await, ResumeError::Replaced);
    for code in [
        Some(1000),
        Some(1001),
        Some(1003),
        Some(1008),
        Some(1011),
        Some(1012),
        Some(3000),
        Some(4000),
        None,
    ] {
        let gateway = Gateway::with_entries(3);
        gateway.end();
        gateway.script([closing(code)]);
        let view = read_all(&gateway, gateway.options()).await;
        assert_eq!(view.seqs(), [1, 2, 3]);
        let [ConnectionLost::Closed { code: reported, .. }] = &view.disconnects[..] else {
            panic!("{code:?}: {:?}", view.disconnects)
        };
        assert_eq!(*reported, code.unwrap_or(1005));
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_protocol_violations_are_final() {
    let gateway = Gateway::with_entries(6);
    // Each of these connections delivers an entry before its violation, so these violations do not add up.
    gateway.script((0..4).map(|_| faulty(2, Fault::Binary(b"x"))));
    // No valid frame follows the last of those violations, so these four and that one add up to five.
    gateway.script((0..4).map(|_| faulty(1, Fault::Missing)));
    let error = final_error(&gateway).await;
    assert_eq!(
        error,
        ResumeError::Broken {
            what: "entry 6 came after entry 4".to_owned()
        }
    );
    assert_eq!(gateway.scripts_left(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_recovered_hello_must_start_at_the_cursor() {
    let gateway = Gateway::with_entries(6);
    gateway.end();
    let hello = |epoch, from, head| Hello {
        epoch,
        earliest: Seq(1),
        head: Seq(head),
        from: Seq(from),
        recovered: true,
        reason: None,
    };
    let epoch = gateway.epoch();
    gateway.script([
        faulty(4, Fault::Cut),
        // The client has entries 1 to 3.
        faulty(0, Fault::Hello(hello(epoch, 2, 6))),
        faulty(0, Fault::Hello(hello(epoch, 4, 6))),
        faulty(0, Fault::Hello(hello(Epoch::random(), 3, 6))),
        faulty(0, Fault::Binary(b"before the hello")),
    ]);
    let view = read_all(&gateway, gateway.options()).await;
    assert_eq!(view.seqs(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(view.disconnects.len(), 5);
    assert!(
        view.disconnects[1..]
            .iter()
            .all(|lost| matches!(lost, ConnectionLost::Violation(_)))
    );
    let gateway = Gateway::with_entries(6);
    gateway.script((0..5).map(|_| faulty(0, Fault::Hello(hello(epoch, 7, 6)))));
    assert!(matches!(final_error(&gateway).await, ResumeError::Broken { .. }));
}

#[tokio::test(start_paused = true)]
async fn connect_tries_once() {
    let gateway = Gateway::with_entries(1);
    for refuse in [Refuse::Unreachable, Refuse::Mute, Refuse::Status(503)] {
        gateway.script([refusing(refuse)]);
        let error = ResumeClient::connect(gateway.options()).await.err().unwrap();
        assert!(matches!(error, ResumeError::Unreachable(_)), "{error}");
        assert_eq!(gateway.scripts_left(), 0);
    }
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    assert!(matches!(client.next().await, Ok(Some(Event::Connected(_)))));
    // Also over TCP, to a port on which nothing listens.
    let options = ResumeOptions::new("http://127.0.0.1:1", KernelId::random());
    let error = ResumeClient::connect(options).await.err().unwrap();
    assert!(
        matches!(error, ResumeError::Unreachable(ConnectionLost::Unreachable(_))),
        "{error}"
    );
}

#[test]
fn invalid_addresses_are_refused() {
    for url in [
        "",
        "host:8888",
        "ftp://host",
        "http://",
        "http://user:pw@host",
        "http://host?x=1",
    ] {
        let error = ResumeClient::new(ResumeOptions::new(url, KernelId::random())).err();
        assert!(
            matches!(error, Some(ResumeError::InvalidUrl { .. })),
            "{url}: {error:?}"
        );
    }
    for url in ["http://host", "ws://[::1]:8888/a/b/", "http://host/base"] {
        assert!(
            ResumeClient::new(ResumeOptions::new(url, KernelId::random())).is_ok(),
            "{url}"
        );
    }
}
