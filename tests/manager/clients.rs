//! What attached clients receive, including after a reconnect.

use kernelmux::protocol::{Channel, WireMessage};
use kernelmux::{AtClose, ExecutionState, ManagerOptions, StartRequest};

use crate::fixture::{Attached, TestFolder, content, execute, msg_type, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn replies_go_to_the_requesting_session_and_output_to_all() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let (mut alice, mut bob) = (Attached::to(&kernel, "alice"), Attached::to(&kernel, "bob"));
    assert_eq!(*kernel.connections().borrow(), 2);
    let (id, request) = execute("input('name? ')", "a");
    alice.client().send(Channel::Shell, request).await.unwrap();
    let seen = alice.until(|entry| msg_type(entry) == "input_request").await;
    assert_eq!(content(seen.last().unwrap())["prompt"], "name? ");
    let answer = WireMessage::from_parts(
        [
            r#"{"msg_id":"answer","msg_type":"input_reply"}"#,
            "{}",
            "{}",
            r#"{"value":"Ann"}"#,
        ]
        .map(bytes::Bytes::from),
        [],
    );
    alice.client().send(Channel::Stdin, answer).await.unwrap();
    alice.until(|entry| msg_type(entry) == "execute_reply").await;
    // Bob receives the same output, but neither Alice's input request nor her reply.
    let (mine, request) = execute("'done'", "b");
    bob.client().send(Channel::Shell, request).await.unwrap();
    // All output of Alice's cell has arrived once Bob's cell is idle. The reply alone is not enough: it uses another
    // socket.
    let (mut replied, mut idle) = (false, false);
    let seen = bob
        .until(|entry| {
            if entry.message().parent_ref().unwrap().msg_id == mine {
                replied |= msg_type(entry) == "execute_reply";
                idle |= content(entry)["execution_state"] == "idle";
            }
            replied && idle
        })
        .await;
    let of_alice: Vec<_> = seen
        .iter()
        .filter(|entry| entry.message().parent_ref().unwrap().msg_id == id)
        .map(msg_type)
        .collect();
    assert!(of_alice.contains(&"execute_result".to_owned()), "{of_alice:?}");
    assert!(!of_alice.contains(&"input_request".to_owned()) && !of_alice.contains(&"execute_reply".to_owned()));
    drop(alice);
    within_deadline(kernel.connections().wait_for(|connections| *connections == 1))
        .await
        .unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnecting_session_resumes_after_its_acknowledgement() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut first = Attached::to(&kernel, "laptop");
    let (id, request) = execute("for i in range(1000): print(i, flush=True)", "laptop");
    first.client().send(Channel::Shell, request).await.unwrap();
    let seen = first.until(|entry| msg_type(entry) == "stream").await;
    let acknowledged = seen.last().unwrap().seq();
    first.client().acknowledge(acknowledged);
    let second = kernel.attach("laptop");
    within_deadline(first.attachment.superseded()).await;
    drop(first);
    assert_eq!(
        *kernel.connections().borrow(),
        1,
        "a superseded attachment must not be counted"
    );
    drop(second);
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    let mut again = Attached::to(&kernel, "laptop");
    // The idle status is the last message on iopub. The reply uses another socket and may be earlier.
    let missed = again
        .until(|entry| {
            content(entry)["execution_state"] == "idle" && entry.message().parent_ref().unwrap().msg_id == id
        })
        .await;
    assert!(missed[0].seq() > acknowledged);
    let text: String = seen
        .iter()
        .chain(&missed)
        .filter(|entry| msg_type(entry) == "stream")
        .map(|entry| content(entry)["text"].as_str().unwrap().to_owned())
        .collect();
    let expected: String = (0..1000).map(|i| format!("{i}\n")).collect();
    assert!(text == expected, "output is missing or repeated: {text}");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
