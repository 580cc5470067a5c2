use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn frames(list: &[&'static str]) -> Vec<Bytes> {
    list.iter()
        .map(|frame| Bytes::from_static(frame.as_bytes()))
        .collect()
}

async fn dealer(endpoint: &Endpoint, identity: &str) -> (Sender, Receiver) {
    connect(
        &endpoint.to_string(),
        SocketType::Dealer,
        identity.as_bytes(),
        SOON,
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn a_router_answers_each_dealer_over_tcp_and_ipc() {
    let dir = tempfile::tempdir().unwrap();
    for address in [
        "tcp://127.0.0.1:0".to_owned(),
        format!("ipc://{}/socket", dir.path().display()),
    ] {
        let router = Router::bind(&address).await.unwrap();
        let endpoint = router.endpoint().clone();
        let (send, mut receive) = router.split();
        let (mut a, mut from_a) = dealer(&endpoint, "a").await;
        let (mut b, mut from_b) = dealer(&endpoint, "b").await;
        let large = Bytes::from(vec![7; 3 << 20]);
        a.send(&[Bytes::from_static(b"question"), large.clone()])
            .await
            .unwrap();
        assert_eq!(
            receive.recv().await.unwrap(),
            [&frames(&["a", "question"])[..], &[large.clone()]].concat()
        );
        b.send(&frames(&["", "other"])).await.unwrap();
        assert_eq!(receive.recv().await.unwrap(), frames(&["b", "", "other"]));
        send.send(vec!["b".into(), large.clone(), "x".into()])
            .await
            .unwrap();
        send.send(frames(&["a", "answer"])).await.unwrap();
        assert_eq!(from_b.recv().await.unwrap(), [large, "x".into()]);
        assert_eq!(from_a.recv().await.unwrap(), frames(&["answer"]));
        assert!(matches!(
            send.send(frames(&["c", "x"])).await,
            Err(ZmtpError::NoPeer)
        ));
        drop(receive);
        assert!(matches!(from_a.recv().await, Err(ZmtpError::Closed)));
    }
}

#[tokio::test]
async fn a_dealer_waits_for_the_port_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("ipc://{}/late", dir.path().display());
    let connecting = connect(&address, SocketType::Dealer, b"", SOON);
    let binding = async {
        tokio::task::yield_now().await;
        Router::bind(&address).await
    };
    let (connected, router) = tokio::join!(connecting, binding);
    let (mut sender, _) = connected.unwrap();
    sender.send(&frames(&["x"])).await.unwrap();
    assert_eq!(router.unwrap().split().1.recv().await.unwrap()[1], "x");

    let nobody = connect(
        "ipc:///nonexistent/socket",
        SocketType::Dealer,
        b"",
        Duration::from_millis(30),
    )
    .await;
    assert!(matches!(nobody, Err(ZmtpError::Io { .. })));
}

#[tokio::test]
async fn a_subscriber_is_welcomed_and_hears_everything_even_if_it_is_slow() {
    const COUNT: usize = 20_000;
    let publisher = Publisher::bind("tcp://127.0.0.1:0", SOON, |topic| {
        Some(vec!["welcome".into(), topic.to_vec().into()])
    })
    .await
    .unwrap();
    publisher.publish(frames(&["lost"])).await;
    let (_send, mut receive) = connect(
        &publisher.endpoint().to_string(),
        SocketType::Sub,
        b"",
        SOON,
    )
    .await
    .unwrap();
    assert_eq!(receive.recv().await.unwrap(), frames(&["welcome", ""]));
    let publish = async {
        for n in 0..COUNT {
            publisher
                .publish(vec![n.to_string().into(), vec![0; 1_000].into()])
                .await;
        }
    };
    let hear = async {
        for n in 0..COUNT {
            assert_eq!(receive.recv().await.unwrap()[0], n.to_string());
        }
    };
    tokio::join!(publish, hear);
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_disconnected_and_the_others_lose_nothing() {
    const COUNT: usize = 1_100;
    let patience = Duration::from_millis(50);
    let publisher = Publisher::bind("tcp://127.0.0.1:0", patience, |_| {
        Some(frames(&["welcome"]))
    })
    .await
    .unwrap();
    let endpoint = publisher.endpoint().to_string();
    let (_s, mut stalled) = connect(&endpoint, SocketType::Sub, b"", SOON)
        .await
        .unwrap();
    let (_t, mut reading) = connect(&endpoint, SocketType::Sub, b"", SOON)
        .await
        .unwrap();
    stalled.recv().await.unwrap();
    reading.recv().await.unwrap();
    let body = Bytes::from(vec![0; 100_000]);
    let publish = async {
        for n in 0..COUNT {
            publisher
                .publish(vec![n.to_string().into(), body.clone()])
                .await;
        }
    };
    let hear = async {
        for n in 0..COUNT {
            assert_eq!(reading.recv().await.unwrap()[0], n.to_string());
        }
    };
    tokio::join!(publish, hear);
    // What was on its way still arrives, then the connection ends.
    let mut heard = 0;
    while stalled.recv().await.is_ok() {
        heard += 1;
    }
    assert!(heard < COUNT);
}

#[tokio::test]
async fn strangers_do_not_disturb() {
    let router = Router::bind("tcp://127.0.0.1:0").await.unwrap();
    let Endpoint::Tcp { port, .. } = router.endpoint().clone() else {
        panic!()
    };
    let endpoint = router.endpoint().clone();
    let mut greeted = vec![
        0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, b'N', b'U', b'L', b'L',
    ];
    greeted.resize(64, 0);
    let huge_length = [&greeted[..], &[2, 0x3f, 255, 255, 255, 255, 255, 255, 255]].concat();
    let old = [&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 1][..], &[0; 60]].concat();
    let bad_ready = [&greeted[..], b"\x04\x08\x05READY\xff\xff"].concat();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 500],
        &huge_length,
        &old,
        &bad_ready,
        &greeted,
        b"",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(garbage).await.unwrap();
    }
    let wrong_type = connect(&endpoint.to_string(), SocketType::Sub, b"", SOON).await;
    assert!(matches!(
        wrong_type,
        Err(ZmtpError::SocketType { .. } | ZmtpError::Closed)
    ));
    let (mut sender, _keep) = dealer(&endpoint, "").await;
    sender.send(&frames(&["still here"])).await.unwrap();
    assert_eq!(router.split().1.recv().await.unwrap()[1], "still here");
}
