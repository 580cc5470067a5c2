use super::*;

fn message(msg_type: &str, content: Value, buffers: &[&'static str]) -> WireMessage {
    let header = json!({"msg_id": "1", "msg_type": msg_type}).to_string();
    let metadata = json!({"version": "2.1.0"}).to_string();
    let parts = [header, "{}".to_owned(), metadata, content.to_string()];
    WireMessage::from_parts(
        parts.map(Bytes::from),
        buffers.iter().map(|buffer| Bytes::from_static(buffer.as_bytes())),
    )
}

fn apply(comms: &mut Comms, seq: u64, message: &WireMessage) {
    comms.on_message(Seq(seq), message, &mut Vec::new());
}

fn open(id: &str, state: Value) -> WireMessage {
    let data = json!({"state": state, "buffer_paths": []});
    message(
        "comm_open",
        json!({"comm_id": id, "target_name": WIDGET, "data": data}),
        &[],
    )
}

fn update(id: &str, method: &str, state: Value, paths: Value, buffers: &[&'static str]) -> WireMessage {
    let data = json!({"method": method, "state": state, "buffer_paths": paths});
    message("comm_msg", json!({"comm_id": id, "data": data}), buffers)
}

#[test]
fn updates_are_folded_into_the_state_with_its_buffers() {
    let mut comms = Comms::default();
    apply(
        &mut comms,
        1,
        &open("a", json!({"value": 1, "max": 10, "layout": "IPY_MODEL_b"})),
    );
    apply(
        &mut comms,
        2,
        &update(
            "a",
            "update",
            json!({"value": 2, "image": {"x": 1}}),
            json!([["image", "data"], ["raw"]]),
            &["one", "two"],
        ),
    );
    apply(
        &mut comms,
        3,
        &update("a", "custom", json!({"value": 3}), json!([]), &[]),
    );
    apply(
        &mut comms,
        4,
        &update("a", "echo_update", json!({"max": 20}), json!([["raw"]]), &["three"]),
    );
    let listed = comms.list(Seq(9));
    assert_eq!(listed.len(), 1);
    let state = json!({"value": 2, "max": 20, "layout": "IPY_MODEL_b", "image": {"x": 1}});
    assert_eq!(listed[0].data["state"], state);
    assert_eq!(listed[0].data["buffer_paths"], json!([["image", "data"], ["raw"]]));
    assert_eq!(listed[0].buffers, ["one", "three"]);
    assert_eq!(Value::from(listed[0].metadata.clone()), json!({"version": "2.1.0"}));
    // A new value without binary parts replaces a value that has them.
    apply(
        &mut comms,
        5,
        &update("a", "update", json!({"image": null, "raw": null}), json!([]), &[]),
    );
    assert_eq!(comms.list(Seq(9))[0].buffers, Vec::<Bytes>::new());
    apply(&mut comms, 6, &message("comm_close", json!({"comm_id": "a"}), &[]));
    assert!(comms.list(Seq(9)).is_empty());
    assert_eq!(comms.bytes, 0);
}

#[test]
fn a_comm_is_listed_after_those_that_it_refers_to() {
    let mut comms = Comms::default();
    apply(
        &mut comms,
        1,
        &open(
            "box",
            json!({"children": ["IPY_MODEL_a", "IPY_MODEL_b"], "layout": "IPY_MODEL_none"}),
        ),
    );
    apply(&mut comms, 2, &open("a", json!({"style": "IPY_MODEL_style"})));
    apply(&mut comms, 3, &open("b", json!({"link": "IPY_MODEL_box"})));
    apply(&mut comms, 4, &open("style", json!({})));
    apply(&mut comms, 5, &open("late", json!({})));
    let ids: Vec<_> = comms.list(Seq(4)).into_iter().map(|comm| comm.comm_id).collect();
    let place = |id: &str| ids.iter().position(|listed| listed == id).unwrap();
    assert_eq!(ids.len(), 4);
    assert!(place("style") < place("a"));
    assert!(place("a") < place("box"));
    assert_eq!(comms.info(Some("other"))["comms"], json!({}));
    assert_eq!(comms.info(Some(WIDGET))["comms"].as_object().unwrap().len(), 5);
}

#[test]
fn comms_are_bounded_in_number_and_size() {
    let mut comms = Comms::default();
    let mut updates = Vec::new();
    for number in 0..=MAX_COMMS as u64 {
        comms.on_message(Seq(number), &open(&number.to_string(), json!({})), &mut updates);
    }
    assert_eq!(comms.open.len(), MAX_COMMS);
    assert!(!comms.open.contains_key("0"));
    let large = "x".repeat(MAX_BYTES / 3);
    for id in ["large 1", "large 2", "large 3"] {
        comms.on_message(Seq(9_999), &open(id, json!({"value": large})), &mut updates);
        assert!(comms.bytes <= MAX_BYTES);
    }
    assert_eq!(comms.open.len(), 2);
    let huge = "x".repeat(MAX_BYTES);
    comms.on_message(
        Seq(9_999),
        &update("large 3", "update", json!({"value": huge}), json!([]), &[]),
        &mut updates,
    );
    // The comm that grew is forgotten, not the others.
    assert!(comms.open.contains_key("large 2") && comms.open.len() == 1);
    assert!(comms.is_incomplete());
    comms.end(Seq(10_000), &mut updates);
    assert!(comms.open.is_empty() && comms.bytes == 0 && !comms.is_incomplete());
    let removed = updates
        .iter()
        .filter(|update| matches!(update, IndexUpdate { value: None, .. }));
    assert_eq!(removed.count(), MAX_COMMS + 1 + 3);
}

#[test]
fn invalid_messages_change_nothing() {
    let mut comms = Comms::default();
    apply(&mut comms, 1, &open("a", json!({"value": 1})));
    for content in [
        json!(7),
        json!({}),
        json!({"comm_id": 1}),
        json!({"comm_id": ""}),
        json!({"comm_id": "a", "data": 7}),
    ] {
        for msg_type in ["comm_msg", "comm_close"] {
            if content.get("data").is_none() {
                apply(&mut comms, 2, &message(msg_type, content.clone(), &[]));
            }
        }
        apply(&mut comms, 3, &message("comm_msg", content, &[]));
    }
    assert_eq!(comms.list(Seq(9))[0].data["state"], json!({"value": 1}));
    // A `comm_open` without data opens a widget without state.
    apply(
        &mut comms,
        4,
        &message(
            "comm_open",
            json!({"comm_id": "b", "target_name": WIDGET, "data": null}),
            &[],
        ),
    );
    assert_eq!(comms.list(Seq(9)).len(), 2);
}
