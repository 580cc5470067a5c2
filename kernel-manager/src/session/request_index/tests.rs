use std::sync::Arc;

use bytes::Bytes;
use chrono::Utc;
use jupyter_protocol::{Channel, KernelId, WireMessage};
use kernel_log::{LogOptions, Logs, MemoryStore, Seq};
use serde_json::json;

use super::RequestIndex;
use crate::session::questions::Answered;

fn message(msg_type: &str, msg_id: &str, parent: &str) -> WireMessage {
    let header = json!({"msg_id": msg_id, "msg_type": msg_type, "session": "s"}).to_string();
    let parent = json!({"msg_id": parent, "msg_type": "execute_request"}).to_string();
    let content = json!({"code": "input()"}).to_string();
    WireMessage::from_parts([header, parent, "{}".to_owned(), content].map(Bytes::from), [])
}

#[tokio::test]
async fn an_answer_closes_the_question_of_its_own_execution_only() {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let mut requests = RequestIndex::load(&log).await.unwrap();
    // Two executions run at the same time, as in two subshells.
    for (seq, name) in [(1, "a"), (2, "b")] {
        let request = message("execute_request", name, "");
        requests.on_request(Seq(seq), Utc::now(), "s", Channel::Shell, &request);
    }
    for (seq, name) in [(3, "a"), (4, "b")] {
        let question = message("input_request", &format!("of {name}"), name);
        requests.on_kernel_message(Seq(seq), Utc::now(), Channel::Stdin, &question);
    }
    let open = |requests: &RequestIndex| {
        let mut open = requests.open_questions("s");
        open.sort();
        open
    };
    assert_eq!(open(&requests), [Seq(3), Seq(4)]);
    let reply = message("input_reply", "1", "of a");
    let Answered::Question(question) = requests.answer(&reply) else {
        panic!("the question is not known");
    };
    assert_eq!(open(&requests), [Seq(4)]);
    requests.reopen(&question);
    assert_eq!(open(&requests), [Seq(3), Seq(4)]);
    assert!(matches!(requests.answer(&reply), Answered::Question(_)));
    assert!(matches!(requests.answer(&reply), Answered::TooLate));
    assert!(matches!(
        requests.answer(&message("input_reply", "2", "unknown")),
        Answered::TooLate
    ));
    assert_eq!(open(&requests), [Seq(4)]);
}
