//! Sent messages reach the log exactly once.

use gateway_client::resume::client::{Event, ExecutionError, ResumeClient, SendError};
use jupyter_protocol::content::{Content, ExecuteRequest};
use jupyter_protocol::{Channel, Message};
use kernel_log::{LIFECYCLE, Lifecycle};
use serde_json::json;

use super::gateway::{Fault, Gateway, Script, faulty, kernel_message};

fn request(code: &str) -> (String, jupyter_protocol::WireMessage) {
    let message = Message::new(ExecuteRequest::new(code), "s");
    (message.header.msg_id.clone(), message.to_wire())
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_sent_byte_neither_loses_nor_duplicates_messages() {
    let mut cut = 0;
    loop {
        let gateway = Gateway::new();
        gateway.script([Script {
            cut_after_read: Some(cut),
            ..Script::default()
        }]);
        let mut client = ResumeClient::new(gateway.options()).unwrap();
        let sent: Vec<_> = (0..3).map(|number| request(&format!("{number}"))).collect();
        for (_, message) in &sent {
            client.send(Channel::Shell, message.clone()).unwrap();
        }
        let mut disconnects = 0;
        let mut requests = Vec::new();
        while requests.len() < 3 {
            match client.next().await.unwrap().unwrap() {
                Event::Disconnected { .. } => disconnects += 1,
                Event::Entry(entry) => {
                    let header = entry.message.header_ref().unwrap();
                    if header.msg_type == "execute_request" {
                        requests.push(header.msg_id.to_string());
                    }
                }
                _ => {}
            }
        }
        let ids: Vec<_> = sent.into_iter().map(|(id, _)| id).collect();
        assert_eq!(requests, ids, "cut after {cut} bytes");
        assert!(ids.iter().all(|id| gateway.count(id) == 1));
        assert_eq!(client.unconfirmed().len(), 0);
        if disconnects == 0 {
            break;
        }
        cut += 1;
    }
    assert!(cut > 1000, "only {cut} cuts were tested");
}

#[tokio::test(start_paused = true)]
async fn an_answer_confirms_a_message_that_is_in_a_gap() {
    let gateway = Gateway::new();
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    client.next().await.unwrap();
    let (id, message) = request("1");
    let header: serde_json::Value = serde_json::from_slice(message.header()).unwrap();
    client.send(Channel::Shell, message).unwrap();
    gateway.lose_one();
    gateway.append(
        Channel::Iopub,
        kernel_message("status", &header, &json!({"execution_state": "busy"})),
    );
    assert_eq!(client.unconfirmed().collect::<Vec<_>>(), [&id]);
    assert!(matches!(client.next().await, Ok(Some(Event::Gap { .. }))));
    assert!(matches!(client.next().await, Ok(Some(Event::Entry(_)))));
    assert_eq!(client.unconfirmed().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn invalid_messages_and_those_beyond_the_limit_are_refused() {
    let gateway = Gateway::new();
    let mut options = gateway.options();
    options.max_unconfirmed = 3;
    let mut client = ResumeClient::new(options).unwrap();
    let (id, first) = request("1");
    client.send(Channel::Shell, first.clone()).unwrap();
    assert_eq!(client.send(Channel::Shell, first), Err(SendError::Duplicate(id)));
    for _ in 0..2 {
        client.send(Channel::Control, request("1").1).unwrap();
    }
    assert_eq!(
        client.send(Channel::Shell, request("1").1),
        Err(SendError::Full { limit: 3 })
    );
    while client.unconfirmed().len() == 3 {
        client.next().await.unwrap();
    }
    let (id, forgotten) = request("1");
    client.send(Channel::Shell, forgotten).unwrap();
    assert!(client.forget(&id) && !client.forget(&id));
    assert!(client.unconfirmed().all(|other| other != id));
    let iopub = client.send(Channel::Iopub, request("1").1);
    assert_eq!(iopub, Err(SendError::Channel(Channel::Iopub)));
    let nameless = jupyter_protocol::WireMessage::from_parts([(); 4].map(|()| bytes::Bytes::from("{}")), []);
    assert_eq!(client.send(Channel::Shell, nameless), Err(SendError::NoId));
}

#[tokio::test(start_paused = true)]
async fn an_execution_is_followed_across_disconnects_and_runs_once() {
    let gateway = Gateway::with_entries(5);
    gateway.script((1..12).map(|frame| faulty(frame.min(3), Fault::Cut)));
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    for _ in 0..2 {
        let mut execution = client.execute(ExecuteRequest::new("code")).unwrap();
        let id = execution.msg_id().to_owned();
        let mut got = Vec::new();
        while let Some(message) = execution.next().await.transpose().unwrap() {
            got.push(message);
        }
        let types: Vec<_> = got.iter().map(Message::msg_type).collect();
        assert_eq!(types, ["status", "stream", "execute_reply", "status"]);
        assert!(matches!(&got[1].content, Content::Stream(stream) if stream.text == format!("{id} ran")));
        assert_eq!(gateway.count(&id), 1);
    }
    assert!(gateway.handshakes().len() > 3);
}

#[tokio::test(start_paused = true)]
async fn an_execution_reports_gaps_and_the_end_of_its_kernel() {
    let without_parent = |msg_type: &str, content: serde_json::Value| kernel_message(msg_type, &json!({}), &content);
    let dead = without_parent(
        "status",
        json!({"execution_state": "dead", "reason": "killed by signal 9"}),
    );
    let gateway = Gateway::new();
    gateway.answer_nothing();
    gateway.append(Channel::Iopub, dead.clone());
    let mut client = ResumeClient::connect(gateway.options()).await.unwrap();
    for (end, expected) in [
        (dead, "killed by signal 9"),
        (without_parent(LIFECYCLE, json!({"event": "restarting"})), "restarting"),
    ] {
        let mut execution = client.execute(ExecuteRequest::new("code")).unwrap();
        while execution.client().unconfirmed().len() > 0 {
            execution.client().next().await.unwrap();
        }
        gateway.append(
            Channel::Iopub,
            without_parent("status", json!({"execution_state": "starting"})),
        );
        gateway.append(Channel::Iopub, without_parent(LIFECYCLE, json!({"event": "attached"})));
        gateway.lose_one();
        gateway.append(Channel::Iopub, end);
        assert_eq!(
            execution.next().await.unwrap().unwrap_err(),
            ExecutionError::Loss(Lifecycle::Attached { unrecorded_ms: None })
        );
        assert!(matches!(execution.next().await, Some(Err(ExecutionError::Gap { .. }))));
        let reason = Some(expected.to_owned());
        assert_eq!(
            execution.next().await.unwrap().unwrap_err(),
            ExecutionError::KernelEnded { reason }
        );
        assert_eq!(execution.next().await.transpose().unwrap(), None);
    }
    let mut execution = client.execute(ExecuteRequest::new("code")).unwrap();
    gateway.replace_log();
    assert!(matches!(
        execution.next().await,
        Some(Err(ExecutionError::NotRecovered(Some(_))))
    ));
    gateway.end();
    assert_eq!(
        execution.next().await.unwrap().unwrap_err(),
        ExecutionError::KernelEnded { reason: None }
    );
}
