//! `GET /metrics`: starts, messages, and clients that are behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Served, TOKEN};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

/// The value of this series; `None` if there is none.
async fn metric(served: &Served, series: &str) -> Option<u64> {
    let answer = served.ask("GET", "/metrics").await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

async fn wait_for(served: &Served, series: &str, is_right: impl Fn(u64) -> bool) {
    let waiting = async {
        while !metric(served, series).await.is_some_and(&is_right) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waiting)
        .await
        .unwrap_or_else(|_| panic!("{series} never had the value"));
}

#[tokio::test]
async fn starts_and_messages_are_counted() {
    let served = Served::start().await;
    assert_eq!(metric(&served, "kernelmux_log_entries_total").await, Some(0));
    served.start_kernel(json!({})).await;
    for phase in ["queued", "starting"] {
        let series = format!("kernelmux_kernel_start_phase_duration_seconds_count{{phase=\"{phase}\"}}");
        assert_eq!(metric(&served, &series).await, Some(1), "{phase}");
    }
    wait_for(&served, "kernelmux_log_waiting_bytes", |bytes| bytes == 0).await;
    let entries = metric(&served, "kernelmux_log_entries_total").await.unwrap();
    assert!(entries > 2, "{entries}");
    assert!(metric(&served, "kernelmux_log_stored_bytes_total").await.unwrap() > 100 * entries);
    for series in [
        "kernelmux_log_refused_writes_total",
        "kernelmux_logs_not_recorded",
        "kernelmux_refused_messages_total{reason=\"invalid\"}",
        "kernelmux_refused_messages_total{reason=\"skipped\"}",
        "kernelmux_agent_links{connected=\"true\"}",
        "kernelmux_largest_reader_lag_entries",
    ] {
        assert_eq!(metric(&served, series).await, Some(0), "{series}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_shown_as_behind() {
    let served = Served::start().await;
    let model = served.start_kernel(json!({"name": "echo"})).await;
    let id = model["id"].as_str().unwrap();
    let lag = "kernelmux_largest_reader_lag_entries";
    for path in ["channels", "log"] {
        let client = if path == "channels" {
            served.websocket(id).await
        } else {
            let mut client = TcpStream::connect(served.address).await.unwrap();
            let request = format!("GET /api/kernels/{id}/log?token={TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'H');
            client
        };
        let code = "x".repeat(1_000_000);
        let behind = async {
            // The connection's buffers hold a few megabytes.
            while metric(&served, lag).await.unwrap() < 20 {
                let run = json!({"code": code});
                let started = served.send("POST", &format!("/api/kernels/{id}/executions"), run).await;
                assert_eq!(started.status, 202, "{started:?}");
            }
        };
        timeout(DEADLINE, behind).await.expect("the client was never behind");
        drop(client);
        wait_for(&served, lag, |lag| lag == 0).await;
    }
}
