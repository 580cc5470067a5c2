//! Compares folds with JupyterLab's outputs of the same messages (`fold_corpus/README.md`), and checks their
//! properties.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use jupyter_protocol::{Channel, WireMessage};
use kernel_manager::fold::{Fold, FoldLimits, without_pager};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    about: String,
    messages: Vec<CaseMessage>,
    outputs: Value,
    #[serde(default)]
    clear_pending: bool,
    #[serde(default)]
    input_pending: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct CaseMessage {
    channel: Channel,
    msg_type: String,
    content: Option<Box<RawValue>>,
    raw: Option<String>,
    parent: Option<String>,
}

impl CaseMessage {
    fn content(&self) -> String {
        match (&self.raw, &self.content) {
            (Some(raw), _) => raw.clone(),
            (None, Some(content)) => content.get().to_owned(),
            (None, None) => "null".to_owned(),
        }
    }

    fn is_of_another_execution(&self) -> bool {
        self.parent.is_some()
    }

    fn apply(&self, fold: &mut Fold) {
        let content = self.content();
        if !self.is_of_another_execution() {
            fold.apply(self.channel, &message(&self.msg_type, content.as_bytes()));
        } else if ["display_data", "update_display_data", "execute_result"].contains(&&*self.msg_type) {
            fold.update_display(content.as_bytes());
        }
    }

    fn value(&self) -> Value {
        let mut value = json!({"channel": self.channel, "msg_type": self.msg_type, "raw": self.content()});
        if self.msg_type == "input_reply" {
            value["content"] = serde_json::from_str(&self.content()).unwrap();
        }
        if let Some(parent) = &self.parent {
            value["parent"] = json!(parent);
        }
        value
    }
}

fn message(msg_type: &str, content: &[u8]) -> WireMessage {
    let header = json!({"msg_id": "of the message", "msg_type": msg_type, "session": "s"}).to_string();
    let parent = r#"{"msg_id":"of the request"}"#;
    WireMessage::from_parts(
        [
            Bytes::from(header),
            Bytes::from(parent),
            Bytes::from("{}"),
            Bytes::copy_from_slice(content),
        ],
        [],
    )
}

fn stream(name: &str, text: &str) -> (Channel, WireMessage) {
    let content = json!({"name": name, "text": text}).to_string();
    (Channel::Iopub, message("stream", content.as_bytes()))
}

fn outputs(fold: &Fold) -> Value {
    serde_json::to_value(fold.outputs()).unwrap()
}

fn folded(messages: &[CaseMessage]) -> Fold {
    let mut fold = Fold::default();
    for message in messages {
        message.apply(&mut fold);
    }
    fold
}

fn replay(from: &Fold, to: &mut Fold) {
    for (msg_type, content) in from.messages() {
        to.apply(Channel::Iopub, &message(msg_type, &content));
    }
}

fn corpus() -> Vec<(PathBuf, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fold_corpus");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".json") && !name.starts_with("package") {
            let file: Vec<Case> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            cases.extend(file.into_iter().map(|case| (path.clone(), case)));
        }
    }
    assert!(cases.len() > 200, "{} cases", cases.len());
    cases
}

#[test]
fn a_fold_equals_jupyterlabs_outputs_of_the_same_messages() {
    let mut wrong = Vec::new();
    for (path, case) in corpus() {
        let fold = folded(&case.messages);
        let got = (outputs(&fold), fold.clear_pending(), fold.input_request().is_some());
        let wanted = (case.outputs, case.clear_pending, case.input_pending);
        if got != wanted {
            wrong.push(format!(
                "{}: {}:\n  wanted {wanted:?}\n  got    {got:?}",
                path.display(),
                case.about
            ));
        }
        assert!(!fold.truncated());
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A client that received some of the messages receives the fold of all messages up to a position, then the rest. This
/// test also writes these replays to a file, with which `fold_corpus/generate.py --replays` checks that JupyterLab
/// shows the same outputs.
#[test]
fn a_client_shows_the_same_outputs_after_a_replayed_fold() {
    let mut replays = Vec::new();
    for (_, case) in corpus() {
        let all = case.messages.len();
        for (received, until) in [
            (0, all),
            (all, all),
            (all / 2, all),
            (all / 3, all - all / 3),
            (all, all / 2),
        ] {
            let (before, after) = case.messages.split_at(until);
            let server = folded(before);
            let mut client = folded(&case.messages[..received]);
            let mut sent: Vec<Value> = case.messages[..received].iter().map(CaseMessage::value).collect();
            replay(&server, &mut client);
            for (msg_type, content) in server.messages() {
                let raw = String::from_utf8(content.to_vec()).unwrap();
                sent.push(json!({"channel": "iopub", "msg_type": msg_type, "raw": raw}));
            }
            if let Some(request) = server.input_request() {
                client.apply(Channel::Stdin, request);
                let raw = String::from_utf8(request.content().to_vec()).unwrap();
                sent.push(json!({"channel": "stdin", "msg_type": "input_request", "raw": raw}));
            }
            for reply in before.iter().filter(|message| message.msg_type == "execute_reply") {
                let content = without_pager(&Bytes::from(reply.content()));
                client.apply(Channel::Shell, &message("execute_reply", &content));
                let raw = String::from_utf8(content.to_vec()).unwrap();
                sent.push(json!({"channel": "shell", "msg_type": "execute_reply", "raw": raw}));
            }
            assert_eq!(outputs(&client), outputs(&server), "{}", case.about);
            for message in after {
                message.apply(&mut client);
                sent.push(message.value());
            }
            assert_eq!(outputs(&client), case.outputs, "{} {received} {until}", case.about);
            assert_eq!(
                client.clear_pending(),
                case.clear_pending,
                "{} {received} {until}",
                case.about
            );
            let about = format!("{}: {received} received, {until} of {all} folded", case.about);
            replays.push(json!({
                "about": about, "messages": sent, "outputs": case.outputs, "clear_pending": case.clear_pending,
            }));
        }
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fold_replays.json");
    std::fs::write(path, serde_json::to_vec(&replays).unwrap()).unwrap();
}

/// Text with many cursor movements.
fn text() -> impl Strategy<Value = String> {
    let letters = prop::sample::select(vec![
        "a", "bc", "é", "漢", "😀", "😁", "\r", "\r", "\x08", "\x08", "\n", "\r\n", "\x1b[1m",
    ]);
    prop::collection::vec(letters, 0..60).prop_map(|letters| letters.concat())
}

/// A message whose content fits its type, or nearly does.
fn any_message() -> impl Strategy<Value = (Channel, String, Vec<u8>)> {
    let bundle = |id: Option<&str>, text: &str| json!({"data": {"text/plain": text}, "metadata": {}, "execution_count": 1, "transient": {"display_id": id}});
    let id = || prop::sample::select(vec![Some("x"), Some("y"), None]);
    let iopub = |kind: &str, content: Value| (Channel::Iopub, kind.to_owned(), content.to_string().into_bytes());
    prop_oneof![
        4 => (prop::sample::select(vec!["stdout", "stderr", ""]), text())
            .prop_map(move |(name, text)| iopub("stream", json!({"name": name, "text": text}))),
        2 => (id(), text()).prop_map(move |(id, text)| iopub("display_data", bundle(id, &text))),
        2 => (id(), text()).prop_map(move |(id, text)| iopub("update_display_data", bundle(id, &text))),
        1 => (id(), text()).prop_map(move |(id, text)| iopub("execute_result", bundle(id, &text))),
        1 => text().prop_map(move |text| iopub("error", json!({"ename": text, "evalue": "", "traceback": [text]}))),
        1 => any::<bool>().prop_map(move |wait| iopub("clear_output", json!({"wait": wait}))),
        1 => text().prop_map(|prompt| {
            (Channel::Stdin, "input_request".to_owned(), json!({"prompt": prompt}).to_string().into_bytes())
        }),
        1 => text().prop_map(|value| {
            (Channel::Stdin, "input_reply".to_owned(), json!({"value": value}).to_string().into_bytes())
        }),
        1 => text().prop_map(|text| {
            let payload = json!([{"source": "page", "data": {"text/plain": text}}]);
            let content = json!({"status": "ok", "payload": payload});
            (Channel::Shell, "execute_reply".to_owned(), content.to_string().into_bytes())
        }),
    ]
}

fn apply_all(fold: &mut Fold, messages: &[(Channel, String, Vec<u8>)]) {
    for (channel, msg_type, content) in messages {
        fold.apply(*channel, &message(msg_type, content));
    }
}

const TYPES: [&str; 10] = [
    "stream",
    "display_data",
    "update_display_data",
    "execute_result",
    "error",
    "clear_output",
    "execute_input",
    "execute_reply",
    "input_request",
    "input_reply",
];

proptest! {
    #[test]
    fn splitting_text_does_not_change_its_fold(text in text(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut unsplit = Fold::default();
        let (channel, message) = stream("stdout", &text);
        unsplit.apply(channel, &message);
        let mut at: Vec<usize> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
        at.extend([0, text.len()]);
        at.sort_unstable();
        let mut split = Fold::default();
        for piece in at.windows(2) {
            let (channel, message) = stream("stdout", &text[piece[0]..piece[1]]);
            split.apply(channel, &message);
        }
        prop_assert_eq!(outputs(&split), outputs(&unsplit));
    }

    #[test]
    fn replaying_a_fold_reproduces_it(
        messages in prop::collection::vec(any_message(), 0..20),
        earlier in prop::collection::vec(any_message(), 0..6),
        rest in prop::collection::vec(any_message(), 0..6),
    ) {
        let mut fold = Fold::default();
        apply_all(&mut fold, &messages);
        let mut again = Fold::default();
        apply_all(&mut again, &earlier);
        for _ in 0..2 {
            replay(&fold, &mut again);
            prop_assert_eq!(outputs(&again), outputs(&fold));
            prop_assert_eq!(again.display_ids().len(), fold.display_ids().len());
        }
        let rest: Vec<_> = rest.into_iter().filter(|(channel, ..)| *channel == Channel::Iopub).collect();
        apply_all(&mut fold, &rest);
        apply_all(&mut again, &rest);
        prop_assert_eq!(outputs(&again), outputs(&fold));
    }

    #[test]
    fn limits_hold_for_any_messages(
        messages in prop::collection::vec((any_message(), 1_usize..40), 0..30),
        max_bytes in 0_usize..20_000,
    ) {
        let mut fold = Fold::new(FoldLimits::max_bytes(max_bytes));
        let mut unlimited = Fold::default();
        for (one, times) in &messages {
            for _ in 0..*times {
                apply_all(&mut fold, std::slice::from_ref(one));
                apply_all(&mut unlimited, std::slice::from_ref(one));
            }
            let size = serde_json::to_vec(&fold.outputs()).unwrap().len();
            // The limit does not count escapes and field names.
            prop_assert!(size < 6 * max_bytes.max(FoldLimits::MIN_BYTES) + 1_000, "{size} for {max_bytes}");
        }
        if !fold.truncated() {
            prop_assert_eq!(outputs(&fold), outputs(&unlimited));
        }
        // JupyterLab does not show text of a stream with an empty name after an output that is not a stream, such as
        // the marker for left-out outputs.
        let nameless = messages.iter().any(|((_, _, content), _)| content.starts_with(br#"{"name":"","#));
        if !(fold.truncated() && nameless) {
            let mut again = Fold::default();
            replay(&fold, &mut again);
            prop_assert_eq!(outputs(&again), outputs(&fold));
        }
    }

    #[test]
    fn any_content_folds_without_a_panic(
        messages in prop::collection::vec(
            (
                prop::sample::select(Channel::WITH_MESSAGES.to_vec()),
                prop::sample::select(TYPES.to_vec()),
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    r#"\{("(name|text|data|metadata|transient|wait|payload|value|ename)":("[a-z\\u\PC]{0,6}"|\{\}|\[\]|null|true|-?[0-9e]{1,3}),?){0,4}\}"#
                        .prop_map(String::into_bytes),
                ],
            ),
            0..20,
        ),
    ) {
        let mut fold = Fold::new(FoldLimits::max_bytes(0));
        for (channel, msg_type, content) in messages {
            fold.apply(channel, &message(msg_type, &content));
            fold.update_display(&content);
            let _ = (serde_json::to_vec(&fold.outputs()).unwrap(), fold.messages(), without_pager(&content.into()));
        }
    }
}

#[test]
fn the_head_and_tail_of_large_output_are_kept() {
    let mut fold = Fold::new(FoldLimits::max_bytes(100_000));
    for number in 0..100_000 {
        let (channel, message) = stream("stdout", &format!("line {number}\n"));
        fold.apply(channel, &message);
    }
    let Value::Array(outputs) = outputs(&fold) else {
        unreachable!()
    };
    assert_eq!(outputs.len(), 3);
    let text = |output: &Value| output["text"].as_str().unwrap().to_owned();
    let (head, tail) = (text(&outputs[0]), text(&outputs[2]));
    assert!(head.starts_with("line 0\nline 1\n") && head.ends_with('\n'));
    assert!(tail.starts_with("line ") && tail.ends_with("line 99998\nline 99999\n"));
    assert!(head.len() > 45_000 && tail.len() > 25_000 && head.len() + tail.len() <= 100_000);
    let all = (0..100_000)
        .map(|number| format!("line {number}\n").len())
        .sum::<usize>();
    assert_eq!(fold.omitted_bytes(), (all - head.len() - tail.len()) as u64);
    let marker = outputs[1]["data"]["text/plain"].as_str().unwrap();
    assert!(marker.contains(&fold.omitted_bytes().to_string()), "{marker}");
    assert!(fold.truncated());

    let (channel, clear) = (Channel::Iopub, message("clear_output", br#"{"wait":false}"#));
    fold.apply(channel, &clear);
    assert!(!fold.truncated() && fold.outputs().is_empty());
}

#[test]
fn an_output_beyond_the_limit_is_replaced_by_a_notice() {
    let mut fold = Fold::new(FoldLimits::max_bytes(10_000));
    let large = json!({"data": {"image/png": "x".repeat(1 << 20)}, "metadata": {}, "transient": {"display_id": "x"}});
    let small = json!({"data": {"text/plain": "small"}, "metadata": {}, "transient": {"display_id": "x"}});
    for content in [&large, &small] {
        fold.apply(Channel::Iopub, &message("display_data", content.to_string().as_bytes()));
    }
    let Value::Array(shown) = outputs(&fold) else {
        unreachable!()
    };
    assert_eq!(shown.len(), 2);
    assert!(shown[0]["data"]["text/plain"].as_str().unwrap().contains("1048"));
    assert_eq!(shown[1]["data"]["text/plain"], "small");
    // An update makes the small display too large as well.
    fold.apply(
        Channel::Iopub,
        &message("update_display_data", large.to_string().as_bytes()),
    );
    assert_eq!(fold.outputs().len(), 1);
    assert!(fold.display_ids().is_empty());
}

#[test]
fn very_long_lines_and_very_many_outputs_are_bounded() {
    let mut fold = Fold::new(FoldLimits::max_bytes(50_000));
    let (_, piece) = stream("stdout", &"ä".repeat(500));
    let (_, back) = stream("stdout", "\rx");
    for number in 0..1_000 {
        fold.apply(Channel::Iopub, &piece);
        if number % 100 == 0 {
            fold.apply(Channel::Iopub, &back);
        }
    }
    assert!(fold.truncated());
    assert!(serde_json::to_vec(&fold.outputs()).unwrap().len() < 60_000);
    let mut fold = Fold::new(FoldLimits::max_bytes(50_000));
    for number in 0..20_000 {
        let (_, message) = stream(if number % 2 == 0 { "stdout" } else { "stderr" }, "");
        fold.apply(Channel::Iopub, &message);
    }
    assert!(fold.outputs().len() < 500);
}

#[test]
fn a_fold_has_the_execution_count_and_the_open_input_request() {
    let mut fold = Fold::default();
    assert_eq!(fold.execution_count(), None);
    fold.apply(
        Channel::Iopub,
        &message("execute_input", br#"{"code":"1","execution_count":3.0}"#),
    );
    assert_eq!(fold.execution_count(), Some(3));
    let request = message("input_request", br#"{"prompt":"?","password":false}"#);
    fold.apply(Channel::Stdin, &request);
    fold.apply(
        Channel::Shell,
        &message("execute_reply", br#"{"status":"error","execution_count":4}"#),
    );
    fold.apply(Channel::Iopub, &message("status", br#"{"execution_state":"idle"}"#));
    assert_eq!(fold.input_request(), Some(&request));
    assert_eq!(fold.execution_count(), Some(4));
    let reply = |parent: &'static str| {
        let parts = [r#"{"msg_type":"input_reply"}"#, parent, "{}", r#"{"value":"x"}"#];
        WireMessage::from_parts(parts.map(Bytes::from), [])
    };
    fold.apply(Channel::Stdin, &reply(r#"{"msg_id":"of another request"}"#));
    assert!(fold.input_request().is_some());
    fold.apply(Channel::Stdin, &reply(r#"{"msg_id":"of the message"}"#));
    assert!(fold.input_request().is_none());
}

#[test]
fn without_pager_removes_the_pages_of_a_reply() {
    let reply = br#"{"status":"ok","execution_count":1,"payload":[{"source":"page","data":{}},{"source":"x"}]}"#;
    let without = without_pager(&Bytes::from_static(reply));
    assert_eq!(
        without,
        r#"{"status":"ok","execution_count":1,"payload":[{"source":"x"}]}"#
    );
    assert_eq!(without_pager(&without), without);
    assert_eq!(without_pager(&Bytes::from_static(b"[")), "[");
}

#[test]
fn nan_and_infinity_become_null() {
    let mut fold = Fold::default();
    let display = br#"{"data":{"application/json":[NaN,-Infinity],"text/plain":"NaN"},"metadata":{}}"#;
    fold.apply(Channel::Iopub, &message("display_data", display));
    let outputs = serde_json::to_value(fold.outputs()).unwrap();
    assert_eq!(
        outputs[0]["data"],
        serde_json::json!({"application/json": [null, null], "text/plain": "NaN"})
    );
}
