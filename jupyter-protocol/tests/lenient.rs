//! Lenient parsing of content that real kernels and clients send contrary to the protocol.

use jupyter_protocol::content::{
    Completeness, Content, ExecutionState, HistoryInput, MimeBundle, NoResult, Reply, StreamName,
};
use serde_json::{Value, json};

/// Message type, received JSON, and serialized JSON with all required fields.
const CASES: &[(&str, &str, &str)] = &[
    (
        "execute_request",
        r#"{"code": "1"}"#,
        r#"{"code":"1","silent":false,"store_history":true,"user_expressions":{},"allow_stdin":true,"stop_on_error":true}"#,
    ),
    (
        "execute_request",
        r#"{"code": "1", "store_history": null, "user_expressions": null, "allow_stdin": false, "stop_on_error": null, "silent": null}"#,
        r#"{"code":"1","silent":false,"store_history":true,"user_expressions":{},"allow_stdin":false,"stop_on_error":true}"#,
    ),
    (
        "execute_reply",
        r#"{"status": "ok", "execution_count": null}"#,
        r#"{"status":"ok","execution_count":null,"user_expressions":{},"payload":[]}"#,
    ),
    (
        "execute_reply",
        r#"{"execution_count": 3.0, "payload": null}"#,
        r#"{"status":"ok","execution_count":3,"user_expressions":{},"payload":[]}"#,
    ),
    (
        "execute_reply",
        r#"{"status": "error", "ename": "E", "evalue": null, "execution_count": 4, "engine_info": {}}"#,
        r#"{"status":"error","ename":"E","evalue":"","traceback":[],"execution_count":4,"engine_info":{}}"#,
    ),
    (
        "execute_reply",
        r#"{"ename": "E", "evalue": 7, "traceback": "one line"}"#,
        r#"{"status":"error","ename":"E","evalue":"7","traceback":["one line"]}"#,
    ),
    ("execute_reply", r#"{"status": "abort"}"#, r#"{"status":"aborted"}"#),
    (
        "execute_reply",
        r#"{"status": "aborted", "why": 1}"#,
        r#"{"status":"aborted","why":1}"#,
    ),
    (
        "execute_reply",
        r#"{"why": 1, "status": "postponed"}"#,
        r#"{"why":1,"status":"postponed"}"#,
    ),
    (
        "inspect_reply",
        r#"{"status": "ok", "found": false}"#,
        r#"{"status":"ok","found":false,"data":{},"metadata":{}}"#,
    ),
    (
        "inspect_request",
        r#"{"code": "x"}"#,
        r#"{"code":"x","cursor_pos":0,"detail_level":0}"#,
    ),
    (
        "complete_reply",
        r#"{"status": "ok", "matches": null}"#,
        r#"{"status":"ok","matches":[],"cursor_start":0,"cursor_end":0,"metadata":{}}"#,
    ),
    (
        "history_reply",
        r#"{"history": [[0, 1, "a"], [0, 2, ["b", null]], [0, 3, ["c", "3"]]]}"#,
        r#"{"status":"ok","history":[[0,1,"a"],[0,2,["b",null]],[0,3,["c","3"]]]}"#,
    ),
    (
        "history_request",
        r#"{"hist_access_type": "fuzzy"}"#,
        r#"{"output":false,"raw":false,"hist_access_type":"fuzzy"}"#,
    ),
    ("is_complete_reply", r#"{}"#, r#"{"status":"unknown"}"#),
    (
        "is_complete_reply",
        r#"{"status": "maybe", "indent": null}"#,
        r#"{"status":"maybe"}"#,
    ),
    (
        "is_complete_reply",
        r#"{"status": "error", "ename": "E"}"#,
        r#"{"status":"error","ename":"E","evalue":"","traceback":[]}"#,
    ),
    (
        "kernel_info_reply",
        r#"{"protocol_version": "5.3", "implementation": "k", "language_info": {"name": "l", "codemirror_mode": "m"}}"#,
        r#"{"status":"ok","protocol_version":"5.3","implementation":"k","implementation_version":"","language_info":{"name":"l","version":"","mimetype":"","file_extension":"","codemirror_mode":"m"},"banner":"","debugger":false,"help_links":[],"supported_features":[]}"#,
    ),
    (
        "kernel_info_reply",
        r#"{"language_info": {"name": "l", "codemirror_mode": {"version": 3, "name": "m"}}, "help_links": null}"#,
        r#"{"status":"ok","protocol_version":"","implementation":"","implementation_version":"","language_info":{"name":"l","version":"","mimetype":"","file_extension":"","codemirror_mode":{"version":3,"name":"m"}},"banner":"","debugger":false,"help_links":[],"supported_features":[]}"#,
    ),
    (
        "comm_info_reply",
        r#"{"status": "ok", "comms": null}"#,
        r#"{"status":"ok","comms":{}}"#,
    ),
    (
        "connect_reply",
        r#"{"shell_port": 1}"#,
        r#"{"status":"ok","shell_port":1,"iopub_port":0,"stdin_port":0,"hb_port":0,"control_port":0}"#,
    ),
    ("shutdown_request", r#"{}"#, r#"{"restart":false}"#),
    (
        "shutdown_reply",
        r#"{"restart": true}"#,
        r#"{"status":"ok","restart":true}"#,
    ),
    ("interrupt_reply", r#"{}"#, r#"{"status":"ok"}"#),
    ("debug_reply", r#"{}"#, r#"{}"#),
    (
        "debug_reply",
        r#"{"type": "response", "success": false, "body": null}"#,
        r#"{"type":"response","success":false,"body":null}"#,
    ),
    (
        "list_subshell_reply",
        r#"{"status": "ok", "subshell_id": null}"#,
        r#"{"status":"ok","subshell_id":[]}"#,
    ),
    (
        "delete_subshell_reply",
        r#"{"status": "error", "evalue": "Unknown subshell_id 'x'"}"#,
        r#"{"status":"error","ename":"","evalue":"Unknown subshell_id 'x'","traceback":[]}"#,
    ),
    (
        "usage_reply",
        r#"{"kernel_memory": 88197120, "kernel_cpu": 0.0}"#,
        r#"{"status":"ok","kernel_cpu":0.0,"kernel_memory":88197120}"#,
    ),
    (
        "comm_open",
        r#"{"comm_id": "c", "target_name": "t", "target_module": null}"#,
        r#"{"comm_id":"c","target_name":"t","data":{}}"#,
    ),
    (
        "usage_reply",
        r#"{"pid": 7, "kernel_cpu": 1.5, "new": []}"#,
        r#"{"status":"ok","pid":7,"kernel_cpu":1.5,"new":[]}"#,
    ),
    ("iopub_welcome", r#"{}"#, r#"{"subscription":""}"#),
    (
        "stream",
        r#"{"name": "log", "text": null}"#,
        r#"{"name":"log","text":""}"#,
    ),
    (
        "display_data",
        r#"{"data": {"text/plain": "1"}}"#,
        r#"{"data":{"text/plain":"1"},"metadata":{},"transient":{}}"#,
    ),
    (
        "display_data",
        r#"{"data": null, "metadata": null, "transient": null}"#,
        r#"{"data":{},"metadata":{},"transient":{}}"#,
    ),
    (
        "update_display_data",
        r#"{"data": {"z": 1, "a": 2}, "transient": {"display_id": "d", "x": 1}}"#,
        r#"{"data":{"z":1,"a":2},"metadata":{},"transient":{"display_id":"d","x":1}}"#,
    ),
    (
        "execute_input",
        r#"{"code": "1"}"#,
        r#"{"code":"1","execution_count":null}"#,
    ),
    (
        "execute_result",
        r#"{"data": {"text/plain": ["a\n", "b"]}, "execution_count": null}"#,
        r#"{"execution_count":null,"data":{"text/plain":["a\n","b"]},"metadata":{}}"#,
    ),
    (
        "error",
        r#"{"ename": "E", "traceback": null}"#,
        r#"{"ename":"E","evalue":"","traceback":[]}"#,
    ),
    (
        "status",
        r#"{"execution_state": "dreaming"}"#,
        r#"{"execution_state":"dreaming"}"#,
    ),
    ("clear_output", r#"{}"#, r#"{"wait":false}"#),
    (
        "comm_open",
        r#"{"comm_id": "c"}"#,
        r#"{"comm_id":"c","target_name":"","data":{}}"#,
    ),
    (
        "comm_msg",
        r#"{"comm_id": "c", "data": null}"#,
        r#"{"comm_id":"c","data":{}}"#,
    ),
    (
        "comm_close",
        r#"{"comm_id": "c", "by": "me"}"#,
        r#"{"comm_id":"c","data":{},"by":"me"}"#,
    ),
    (
        "input_request",
        r#"{"prompt": "? "}"#,
        r#"{"prompt":"? ","password":false}"#,
    ),
    (
        "input_reply",
        r#"{"status": "ok", "value": "v"}"#,
        r#"{"value":"v","status":"ok"}"#,
    ),
    ("handshake_reply", r#"{"status": "ok"}"#, r#"{"status":"ok"}"#),
];

#[test]
fn incomplete_content_is_parsed_and_serialized_with_all_required_fields() {
    for (msg_type, incoming, outgoing) in CASES {
        let content = Content::parse(msg_type, incoming.as_bytes());
        assert!(
            !matches!(content, Content::Unknown(_) | Content::Invalid(_)),
            "{msg_type}: {content:?}"
        );
        assert_eq!(content.msg_type(), *msg_type);
        assert_eq!(content.to_json(), *outgoing, "{msg_type} {incoming}");
        assert_eq!(
            Content::parse(msg_type, outgoing.as_bytes()),
            content,
            "{msg_type}: serialized content parses to other content"
        );
    }
}

/// Every type keeps unknown fields, and treats anything but an object as invalid.
#[test]
fn every_type_keeps_unknown_fields_and_invalid_content() {
    for msg_type in Content::MSG_TYPES {
        let mut object = json!({
            "code": "c", "comm_id": "c", "subshell_id": "s", "hist_access_type": "tail", "name": "stdout",
            "execution_state": "idle", "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "hb_port": 4,
            "control_port": 5, "of the future": {"z": [1, 2.5, null], "a": "b"},
        });
        if *msg_type == "list_subshell_reply" {
            object["subshell_id"] = json!(["s"]);
        }
        let content = Content::parse(msg_type, object.to_string().as_bytes());
        assert_eq!(content.msg_type(), *msg_type);
        let serialized: Value = serde_json::from_slice(&content.to_json()).unwrap();
        for (field, value) in object.as_object().unwrap() {
            assert_eq!(&serialized[field], value, "{msg_type}: {field} in {content:?}");
        }
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "7",
            "\"x\"",
            "{\"status\": 1, \"data\": 7, \"value\"",
            "\u{0}",
        ] {
            let content = Content::parse(msg_type, bad.as_bytes());
            assert!(matches!(content, Content::Invalid(_)), "{msg_type} {bad}: {content:?}");
            assert_eq!(content.msg_type(), *msg_type);
            assert_eq!(content.to_json(), bad);
        }
    }
}

#[test]
fn content_without_an_essential_field_is_invalid_and_kept() {
    for (msg_type, json) in [
        ("execute_request", r#"{"silent": true}"#),
        ("execute_request", r#"{"code": ["a", "b"]}"#),
        ("status", r#"{}"#),
        ("comm_msg", r#"{"data": {}}"#),
        ("delete_subshell_request", r#"{}"#),
        ("execute_reply", r#"{"status": "ok", "execution_count": -1.5}"#),
        ("complete_request", r#"{"code": "", "cursor_pos": -1}"#),
    ] {
        let content = Content::parse(msg_type, json.as_bytes());
        let Content::Invalid(invalid) = &content else {
            panic!("{msg_type}: {content:?}");
        };
        assert!(!invalid.problem.is_empty());
        assert_eq!(content.to_json(), json);
    }
}

#[test]
fn content_of_an_unknown_type_is_kept_byte_for_byte() {
    let json = r#"{ "b" : 1.00, "a":123456789012345678901234567890 , "b":2 }"#;
    let content = Content::parse("teleport_request", json.as_bytes());
    assert!(matches!(content, Content::Unknown(_)));
    assert_eq!(content.msg_type(), "teleport_request");
    assert_eq!(content.to_json(), json);
}

/// `jupyter_client` does the same.
#[test]
fn invalid_utf8_becomes_replacement_characters() {
    let content = Content::parse("stream", b"{\"name\":\"stdout\",\"text\":\"a\xffb\"}");
    let Content::Stream(stream) = content else {
        panic!("{content:?}");
    };
    assert_eq!(stream.text, "a\u{fffd}b");
}

#[test]
fn parsed_fields_have_the_expected_values() {
    let parse = |msg_type: &str, content: Value| Content::parse(msg_type, content.to_string().as_bytes());

    let Content::Stream(stream) = parse("stream", json!({"name": "stderr", "text": "t"})) else {
        panic!();
    };
    assert_eq!((stream.name, stream.text.as_str()), (StreamName::Stderr, "t"));
    let Content::Status(status) = parse("status", json!({"execution_state": "dreaming"})) else {
        panic!();
    };
    assert_eq!(status.execution_state, ExecutionState::Other("dreaming".into()));

    let Content::ExecuteReply(reply) = parse("execute_reply", json!({"status": "error", "ename": "E", "evalue": "v"}))
    else {
        panic!();
    };
    assert_eq!(reply.status(), "error");
    assert!(matches!(reply.into_result(), Err(NoResult::Error(error)) if error.to_string() == "E: v"));
    let Content::ExecuteReply(reply) = parse("execute_reply", json!({"status": "aborted"})) else {
        panic!();
    };
    assert_eq!(reply.into_result(), Err(NoResult::Aborted));

    let Content::IsCompleteReply(Reply::Ok(reply)) =
        parse("is_complete_reply", json!({"status": "incomplete", "indent": "  "}))
    else {
        panic!();
    };
    assert_eq!(reply.status, Completeness::Incomplete);
    assert_eq!(reply.indent.as_deref(), Some("  "));

    let Content::HistoryReply(Reply::Ok(reply)) = parse("history_reply", json!({"history": [[1, 2, ["c", null]]]}))
    else {
        panic!();
    };
    assert_eq!(reply.history[0].input, HistoryInput::WithOutput("c".into(), None));

    let Content::KernelInfoReply(Reply::Ok(reply)) = parse(
        "kernel_info_reply",
        json!({"supported_features": ["kernel subshells"], "debugger": true}),
    ) else {
        panic!();
    };
    assert!(reply.supports("kernel subshells") && reply.supports("debugger") && !reply.supports("flying"));

    let bundle: MimeBundle = serde_json::from_value(json!({"text/plain": ["a\n", "b"], "x/y": {"z": 1}})).unwrap();
    assert_eq!(bundle.plain_text().as_deref(), Some("a\nb"));
    assert_eq!(bundle.as_text("x/y"), None);
    assert_eq!(bundle.as_text("image/png"), None);
}

#[test]
fn debug_output_hides_input_values() {
    let content = Content::parse("input_reply", br#"{"value": "hunter2"}"#);
    assert!(!format!("{content:?}").contains("hunter2"));
}
