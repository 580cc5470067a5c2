//! Widgets of a real kernel. Their state is available to pages that are opened while the kernel is busy.

use kernelmux::protocol::Channel;
use kernelmux::protocol::content::{CommInfoRequest, ExecuteRequest, KernelInfoRequest};
use kernelmux::protocol::message::Message;
use kernelmux::{AtClose, Kernel, ManagerOptions, StartRequest};
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::fixture::{TestFolder, run, within_deadline};

/// Opens comms for a slider and the box that contains it, one that is closed at once, and one that is not a widget's.
/// Changes the slider's state.
const WIDGETS: &str = "\
from comm import create_comm
def widget(id, **state):
    data = {'state': state, 'buffer_paths': []}
    return create_comm(target_name='jupyter.widget', comm_id=id, data=data, metadata={'version': '2.1.0'})
box = widget('box', children=['IPY_MODEL_slider'])
slider = widget('slider', value=1, max=10)
closed = widget('closed')
closed.close()
slider.send({'method': 'update', 'state': {'value': 5}, 'buffer_paths': [['image']]}, buffers=[b'pixels'])
other = create_comm(target_name='other', comm_id='other', data={'a': 1})
";

fn ids_and_values(comms: &[kernelmux::Comm]) -> Value {
    let listed = comms.iter().map(|comm| {
        json!([
            comm.comm_id,
            comm.target_name,
            comm.data.get("state").and_then(|state| state.get("value"))
        ])
    });
    listed.collect()
}

/// Follows the execution, and returns the `comm_open`s before the replay: ids and data, and the number of buffers.
async fn opened(kernel: &Arc<Kernel>, msg_id: &str) -> Vec<(Value, usize)> {
    let metadata = json!({"follow": true, "comms": true});
    let mut request = Message::new(ExecuteRequest::new(""), "page")
        .with_metadata(Map::from_iter([("kernelmux".to_owned(), metadata)]));
    request.header.msg_id = msg_id.to_owned();
    let attachment = kernel.attach("page");
    let messages = within_deadline(attachment.follow(&request.to_wire())).await;
    let first_replayed = messages.iter().position(|(_, message)| {
        let metadata: Value = serde_json::from_slice(message.metadata()).unwrap();
        metadata["kernelmux"]["replay"] == true
    });
    let opened = messages[..first_replayed.unwrap()].iter().map(|(channel, message)| {
        assert_eq!(*channel, Channel::Iopub);
        assert_eq!(message.header_ref().unwrap().msg_type, "comm_open");
        let metadata: Value = serde_json::from_slice(message.metadata()).unwrap();
        assert_eq!(metadata["version"], "2.1.0");
        let content: Value = serde_json::from_slice(message.content()).unwrap();
        (json!([content["comm_id"], content["data"]]), message.buffers().len())
    });
    opened.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn widget_state_is_available_while_the_kernel_is_busy_and_to_the_next_manager() {
    let Some(test_folder) = TestFolder::new() else { return };
    let mut manager = test_folder.manager(ManagerOptions::default()).await;
    let mut kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    run(&kernel, WIDGETS).await;
    let mut busy = kernel
        .execute("slider.send({'method': 'update', 'state': {'value': 7}})\nprint(1)\nimport time\nwhile True: time.sleep(0.01)")
        .await
        .unwrap();
    while !matches!(
        within_deadline(busy.next()).await.unwrap().unwrap().content,
        kernelmux::protocol::content::Content::Stream(_)
    ) {}
    let msg_id = busy.msg_id().to_owned();
    drop(busy);
    let id = kernel.id();
    for _ in 0..2 {
        let comms = within_deadline(kernel.comms()).await.unwrap();
        let expected = json!([
            ["slider", "jupyter.widget", 7],
            ["box", "jupyter.widget", null],
            ["other", "other", null]
        ]);
        assert_eq!(ids_and_values(&comms), expected);
        assert_eq!(comms[0].buffers, ["pixels"]);
        assert_eq!(Value::from(comms[2].data.clone()), json!({"a": 1}));
        let slider = json!({"state": {"max": 10, "value": 7}, "buffer_paths": [["image"]]});
        let children = json!({"state": {"children": ["IPY_MODEL_slider"]}, "buffer_paths": []});
        let expected = [(json!(["slider", slider]), 1), (json!(["box", children]), 0)];
        assert_eq!(opened(&kernel, &msg_id).await, expected);

        // These requests are answered from the log while the kernel is busy.
        let client = kernel.attach("page").client();
        for (request, reply_type) in [
            (Message::new(KernelInfoRequest::default(), "page"), "kernel_info_reply"),
            (Message::new(CommInfoRequest::default(), "page"), "comm_info_reply"),
        ] {
            let request = request.to_wire();
            assert!(client.is_answered_from_log(Channel::Shell, &request));
            assert!(!client.is_answered_from_log(Channel::Control, &request));
            let answer = within_deadline(client.answer_from_log(&request)).await;
            let (channel, reply) = &answer[1];
            assert_eq!(*channel, Channel::Shell);
            assert_eq!(reply.header_ref().unwrap().msg_type, reply_type);
            let content: Value = serde_json::from_slice(reply.content()).unwrap();
            assert_eq!(content["status"], "ok");
            if reply_type == "comm_info_reply" {
                assert_eq!(content["comms"]["slider"], json!({"target_name": "jupyter.widget"}));
                assert_eq!(content["comms"].as_object().unwrap().len(), 3);
            } else {
                assert_eq!(content["implementation"], "ipython");
            }
        }
        drop(client);
        within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();
        drop((kernel, manager));
        manager = test_folder.manager(ManagerOptions::default()).await;
        assert_eq!(within_deadline(manager.restore()).await, 1);
        kernel = manager.get(id).unwrap();
    }
    // The comms end with the kernel's process.
    within_deadline(kernel.restart()).await.unwrap();
    assert!(within_deadline(kernel.comms()).await.unwrap().is_empty());
    let client = kernel.attach("page").client();
    let request = Message::new(KernelInfoRequest::default(), "page").to_wire();
    assert!(!client.is_answered_from_log(Channel::Shell, &request));
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
