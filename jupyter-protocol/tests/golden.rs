//! Compatibility with test vectors that `golden/generate.py` creates with Jupyter's Python packages.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use jupyter_protocol::codec::{legacy_binary, legacy_text, websocket_v1};
use jupyter_protocol::kernelspec::expand_env;
use jupyter_protocol::paths::{PathEnv, Platform};
use jupyter_protocol::{Channel, ConnectionInfo, Message, Signer, Transport, WireMessage};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Vectors {
    messages: Vec<MessageVector>,
    connection_files: Vec<ConnectionFileVector>,
    paths: Vec<PathVector>,
    env_templates: Vec<TemplateVector>,
}

#[derive(Deserialize)]
struct MessageVector {
    name: String,
    channel: Channel,
    scheme: String,
    key: String,
    identities: usize,
    buffers: usize,
    frames: Vec<Hex>,
    websocket_v1: Hex,
    legacy_text: Option<String>,
    legacy_binary: Option<Hex>,
}

#[derive(Deserialize)]
struct ConnectionFileVector {
    options: Map<String, Value>,
    text: String,
}

#[derive(Deserialize)]
struct PathVector {
    variables: std::collections::BTreeMap<String, String>,
    home: PathBuf,
    prefix: PathBuf,
    data_dir: PathBuf,
    runtime_dir: PathBuf,
    jupyter_path: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct TemplateVector {
    template: String,
    variables: std::collections::BTreeMap<String, String>,
    expanded: String,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Hex(Bytes);

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes: Result<Vec<u8>, _> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16))
            .collect();
        Ok(Self(bytes?.into()))
    }
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("golden/vectors.json")).unwrap()
}

impl MessageVector {
    fn frames(&self) -> Vec<Bytes> {
        self.frames.iter().map(|frame| frame.0.clone()).collect()
    }

    fn message(&self) -> WireMessage {
        WireMessage::from_frames(self.frames()).unwrap()
    }

    fn signer(&self) -> Signer {
        Signer::new(&self.scheme, self.key.as_bytes()).unwrap()
    }
}

#[test]
fn frames_are_parsed_and_signatures_verified() {
    for vector in vectors().messages {
        let name = &vector.name;
        let message = vector.message();
        assert_eq!(message.identities().len(), vector.identities, "{name}");
        assert_eq!(message.buffers().len(), vector.buffers, "{name}");
        assert_eq!(message.verify(&vector.signer()), Ok(()), "{name}");
        assert_eq!(message.clone().into_frames(), vector.frames(), "{name}");
    }
}

#[test]
fn signatures_equal_those_of_jupyter_client() {
    for vector in vectors().messages {
        let message = vector.message();
        let parts = message.parts().map(Bytes::clone);
        let ours = WireMessage::from_parts(parts, message.buffers().iter().cloned())
            .signed(&vector.signer())
            .with_identities(message.identities().iter().cloned());
        assert_eq!(ours.into_frames(), vector.frames(), "{}", vector.name);
    }
}

#[test]
fn a_changed_byte_in_any_signed_part_is_rejected() {
    for vector in vectors().messages.iter().filter(|vector| !vector.key.is_empty()) {
        for part in 1..6 {
            let mut frames = vector.frames();
            let index = vector.identities + part;
            let mut changed = frames[index].to_vec();
            let last = changed.len() - 1;
            changed[last] ^= 1;
            frames[index] = changed.into();
            let message = WireMessage::from_frames(frames).unwrap();
            assert!(message.verify(&vector.signer()).is_err(), "{} {part}", vector.name);
        }
    }
}

#[test]
fn websocket_v1_is_identical_byte_for_byte() {
    for vector in vectors().messages {
        let name = &vector.name;
        let message = vector.message();
        let encoded = websocket_v1::encode(vector.channel, &message);
        assert_eq!(encoded, vector.websocket_v1.0, "{name}");
        assert_eq!(encoded.len(), websocket_v1::encoded_len(vector.channel, &message));
        let (channel, decoded) = websocket_v1::decode(&vector.websocket_v1.0).unwrap();
        assert_eq!(channel, vector.channel, "{name}");
        assert_eq!(decoded.parts_and_buffers(), message.parts_and_buffers(), "{name}");
    }
}

/// Compares JSON values: jupyter_server reserializes the parts, while we splice them.
#[test]
fn legacy_text_is_equivalent() {
    for vector in vectors().messages {
        let Some(text) = &vector.legacy_text else {
            continue;
        };
        let name = &vector.name;
        let message = vector.message();
        let theirs: Value = serde_json::from_str(text).unwrap();
        let ours = legacy_text::encode(vector.channel, &message).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&ours).unwrap(), theirs, "{name}");
        let (channel, decoded) = legacy_text::decode(&Bytes::from(text.clone())).unwrap();
        assert_eq!(channel, vector.channel, "{name}");
        assert_parts_equal(&decoded, &theirs, name);
    }
}

#[test]
fn legacy_binary_is_equivalent() {
    for vector in vectors().messages {
        let Some(binary) = &vector.legacy_binary else {
            continue;
        };
        let name = &vector.name;
        let message = vector.message();
        let (channel, theirs) = legacy_binary::decode(&binary.0).unwrap();
        assert_eq!(channel, vector.channel, "{name}");
        assert_eq!(theirs.buffers(), message.buffers(), "{name}");
        let ours = legacy_binary::encode(vector.channel, &message).unwrap();
        let (_, ours) = legacy_binary::decode(&ours).unwrap();
        assert_eq!(ours.parts_and_buffers(), message.parts_and_buffers(), "{name}");
        for (ours, theirs) in ours.parts().into_iter().zip(theirs.parts()) {
            assert_eq!(json(ours), json(theirs), "{name}");
        }
    }
}

fn json(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn assert_parts_equal(message: &WireMessage, expected: &Value, name: &str) {
    for (part, key) in message
        .parts()
        .into_iter()
        .zip(["header", "parent_header", "metadata", "content"])
    {
        assert_eq!(json(part), expected[key], "{name}: {key}");
    }
}

#[test]
fn typed_messages_are_equivalent_when_serialized() {
    for vector in vectors().messages {
        let name = &vector.name;
        let wire = vector.message();
        let message = Message::from_wire(&wire).unwrap();
        let content_type = message.content.msg_type().to_owned();
        assert_eq!(content_type, message.header.msg_type, "{name}");
        assert!(
            !matches!(message.content, jupyter_protocol::content::Content::Invalid(_)),
            "{name}"
        );
        let again = message.to_wire();
        for (ours, theirs) in again.parts().into_iter().zip(wire.parts()) {
            // Invalid UTF-8 becomes replacement characters, as in jupyter_client.
            let theirs = Bytes::from(String::from_utf8_lossy(theirs).into_owned());
            let (mut ours, mut theirs) = (json(ours), json(&theirs));
            for header in [&mut ours, &mut theirs] {
                // An absent subshell is equivalent to null.
                if header.get("subshell_id").is_some_and(Value::is_null) {
                    header.as_object_mut().unwrap().remove("subshell_id");
                }
            }
            assert_eq!(ours, theirs, "{name}");
        }
        assert_eq!(again.buffers(), wire.buffers(), "{name}");
    }
}

#[test]
fn connection_files_of_jupyter_client_are_parsed() {
    for vector in vectors().connection_files {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel.json");
        std::fs::write(&path, &vector.text).unwrap();
        let info = ConnectionInfo::read(&path).unwrap();
        assert_eq!(info.ip, vector.options["ip"].as_str().unwrap());
        let ports = Channel::WITH_MESSAGES.map(|channel| info.port(channel));
        assert_eq!(ports, [50001, 50005, 50003, 50002]);
        assert_eq!(info.hb_port, 50004);
        assert_eq!(info.key.as_bytes(), b"secret-key");
        assert_eq!(info.kernel_name, "python3");
        let session = vector.options.get("jupyter_session").and_then(Value::as_str);
        assert_eq!(info.jupyter_session.as_deref(), session);
        assert!(info.extra.is_empty(), "{:?}", info.extra);
        if info.transport == Transport::Ipc {
            assert_eq!(info.address(Channel::Shell), "ipc://kernel-ipc-50001");
        }
        // The file that we write is the same JSON.
        info.write(&path).unwrap();
        let ours: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(ours, serde_json::from_str::<Value>(&vector.text).unwrap());
    }
}

#[test]
fn directories_equal_those_of_jupyter_core() {
    for vector in vectors().paths {
        let case = format!("{:?} {}", vector.variables, vector.prefix.display());
        let env = PathEnv::new(&vector.variables, &vector.home)
            .with_platform(Platform::Unix)
            .with_python_prefix(&vector.prefix);
        assert_eq!(env.data_dir(), vector.data_dir, "{case}");
        assert_eq!(env.runtime_dir(), vector.runtime_dir, "{case}");
        let wanted: Vec<&Path> = vector.jupyter_path.iter().map(PathBuf::as_path).collect();
        assert_eq!(env.jupyter_path(), wanted, "{case}");
    }
}

#[test]
fn variables_are_expanded_as_in_python() {
    for vector in vectors().env_templates {
        let expanded = expand_env(&vector.template, |name| vector.variables.get(name).cloned());
        assert_eq!(expanded, vector.expanded, "{}", vector.template);
    }
}
