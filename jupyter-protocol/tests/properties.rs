//! Property tests: parsing never panics, and decoding an encoded message returns the original.

use bytes::Bytes;
use jupyter_protocol::codec::{legacy_binary, legacy_text, websocket_v1};
use jupyter_protocol::content::Content;
use jupyter_protocol::header::{Header, HeaderRef};
use jupyter_protocol::kernelspec::expand_env;
use jupyter_protocol::signing::DigestHistory;
use jupyter_protocol::{Channel, Message, Signer, WireMessage};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value};

fn channel() -> impl Strategy<Value = Channel> {
    prop::sample::select(&Channel::WITH_MESSAGES)
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4).prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn json_object() -> impl Strategy<Value = Map<String, Value>> {
    vec((any::<String>(), json_value()), 0..4).prop_map(Map::from_iter)
}

/// Generates messages whose four parts are JSON objects.
fn message() -> impl Strategy<Value = WireMessage> {
    (
        [json_object(), json_object(), json_object(), json_object()],
        vec(bytes(40), 0..6),
    )
        .prop_map(|(objects, buffers)| {
            let parts = objects.map(|object| Bytes::from(Value::Object(object).to_string()));
            WireMessage::from_parts(parts, buffers)
        })
}

fn field_of_any_content() -> impl Strategy<Value = (String, Value)> {
    const NAMES: &[&str] = &[
        "status",
        "code",
        "silent",
        "execution_count",
        "user_expressions",
        "data",
        "metadata",
        "transient",
        "name",
        "text",
        "ename",
        "evalue",
        "traceback",
        "execution_state",
        "comm_id",
        "history",
        "matches",
        "cursor_pos",
        "language_info",
        "subshell_id",
        "wait",
        "value",
        "prompt",
        "comms",
        "payload",
        "indent",
        "hist_access_type",
    ];
    (prop::sample::select(NAMES).prop_map(str::to_owned), json_value())
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(data in bytes(400)) {
        let _ = websocket_v1::decode(&data);
        let _ = websocket_v1::V1Message::parse(&data);
        let _ = legacy_binary::decode(&data);
        let _ = legacy_text::decode(&data);
        let _ = Header::parse(&data);
        let _ = Header::parse_parent(&data);
        let _ = HeaderRef::parse(&data);
    }

    #[test]
    fn arbitrary_offsets_do_not_panic(numbers in vec(prop_oneof![0_u64..200, any::<u64>()], 0..20), tail in bytes(100)) {
        let little: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let _ = websocket_v1::decode(&[little, tail.to_vec()].concat().into());
        let big: Vec<u8> = numbers.iter().flat_map(|number| (*number as u32).to_be_bytes()).collect();
        let _ = legacy_binary::decode(&[big, tail.to_vec()].concat().into());
    }

    #[test]
    fn arbitrary_frames_do_not_panic(
        frames in vec(prop_oneof![bytes(20), Just(Bytes::from_static(b"<IDS|MSG>")), Just(Bytes::from_static(b"{}"))], 0..12)
    ) {
        if let Ok(message) = WireMessage::from_frames(frames.clone()) {
            let _ = message.header_ref();
            let _ = message.parent_ref();
            if let Ok(parsed) = Message::from_wire(&message) {
                let _ = parsed.to_wire();
            }
            prop_assert_eq!(message.into_frames(), frames);
        }
    }

    #[test]
    fn signed_frames_verify_and_changed_ones_do_not(
        message in message(), identities in vec(bytes(10).prop_filter("not the delimiter", |id| id != "<IDS|MSG>"), 0..3),
        key in vec(any::<u8>(), 1..100), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let signer = Signer::new("hmac-sha256", &key).unwrap();
        let message = message.with_identities(identities.clone()).signed(&signer);
        let received = WireMessage::from_frames(message.clone().into_frames()).unwrap();
        prop_assert_eq!(&received, &message);
        prop_assert_eq!(received.identities(), &identities[..]);
        prop_assert!(received.verify(&signer).is_ok());
        let mut history = DigestHistory::default();
        prop_assert!(history.insert(received.signature()) && !history.insert(received.signature()));

        // Flips one bit of the signature or of a signed part.
        let mut frames = message.into_frames();
        let signed = identities.len() + 1..identities.len() + 6;
        let length: usize = frames[signed.clone()].iter().map(Bytes::len).sum();
        let mut at = at.index(length);
        for frame in &mut frames[signed] {
            if at < frame.len() {
                let mut changed = frame.to_vec();
                changed[at] ^= 1 << bit;
                *frame = changed.into();
                break;
            }
            at -= frame.len();
        }
        prop_assert!(WireMessage::from_frames(frames).unwrap().verify(&signer).is_err());
    }

    #[test]
    fn websocket_v1_round_trips(channel in channel(), parts in [bytes(60), bytes(60), bytes(60), bytes(60)], buffers in vec(bytes(60), 0..8)) {
        let message = WireMessage::from_parts(parts, buffers);
        let encoded = websocket_v1::encode(channel, &message);
        prop_assert_eq!(websocket_v1::decode(&encoded), Ok((channel, message)));
        // Any truncation is an error, never another message.
        for end in 0..encoded.len() {
            prop_assert!(websocket_v1::decode(&encoded.slice(..end)).is_err());
        }
    }

    #[test]
    fn legacy_text_round_trips(channel in channel(), message in message()) {
        let encoded = legacy_text::encode(channel, &message);
        // Encoding needs a header that parses, because its id and type are repeated at the top level.
        if message.header_ref().is_ok() {
            let (decoded_channel, decoded) = legacy_text::decode(&encoded.unwrap()).unwrap();
            prop_assert_eq!(decoded_channel, channel);
            prop_assert_eq!(decoded.parts(), message.parts());
        }
    }

    #[test]
    fn legacy_binary_round_trips(channel in channel(), message in message()) {
        if message.header_ref().is_ok() {
            let encoded = legacy_binary::encode(channel, &message).unwrap();
            prop_assert_eq!(legacy_binary::decode(&encoded), Ok((channel, message)));
        }
    }

    #[test]
    fn borrowed_and_owned_headers_agree(fields in json_object(), id in any::<String>(), session in any::<String>()) {
        let mut fields = fields;
        fields.insert("msg_id".into(), id.clone().into());
        fields.insert("msg_type".into(), "status".into());
        fields.insert("session".into(), session.clone().into());
        let json = Value::Object(fields.clone()).to_string();
        let borrowed = HeaderRef::parse(json.as_bytes()).unwrap();
        prop_assert_eq!(&borrowed.msg_id, &id);
        prop_assert_eq!(&borrowed.session, &session);
        if let Ok(owned) = Header::parse(json.as_bytes()) {
            prop_assert_eq!(&owned.msg_id, &id);
            let again: Value = serde_json::from_slice(&serde_json::to_vec(&owned).unwrap()).unwrap();
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                prop_assert_eq!(&again[name], value);
            }
        }
    }

    #[test]
    fn arbitrary_content_is_kept(msg_type in prop::sample::select(Content::MSG_TYPES), json in bytes(100)) {
        let content = Content::parse(msg_type, &json);
        prop_assert_eq!(content.msg_type(), msg_type);
        if let Content::Invalid(_) = content {
            prop_assert_eq!(content.to_json(), json);
        }
    }

    #[test]
    fn contents_of_arbitrary_fields_are_kept(
        msg_type in prop::sample::select(Content::MSG_TYPES), fields in vec(field_of_any_content(), 0..8), extra in json_value()
    ) {
        let mut fields = Map::from_iter(fields);
        fields.insert("of the future".into(), extra.clone());
        let json = Value::Object(fields).to_string();
        let content = Content::parse(msg_type, json.as_bytes());
        prop_assert_eq!(content.msg_type(), msg_type);
        let written = content.to_json();
        if let Content::Invalid(_) = content {
            prop_assert_eq!(written, json);
        } else {
            let again: Value = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(&again["of the future"], &extra);
            prop_assert_eq!(Content::parse(msg_type, &written).to_json(), written);
        }
    }

    #[test]
    fn messages_round_trip(
        metadata in json_object(), content in json_object(), buffers in vec(bytes(20), 0..3), session in any::<String>()
    ) {
        let parent = Message::new(Content::parse("t", b"{}"), &session).on_subshell("s");
        let message = Message::new(Content::parse("unheard_of", Value::Object(content).to_string().as_bytes()), &session)
            .child_of(&parent)
            .with_metadata(metadata)
            .with_buffers(buffers);
        prop_assert_eq!(Message::from_wire(&message.to_wire()).unwrap(), message);
    }

    #[test]
    fn arbitrary_templates_do_not_panic(template in any::<String>()) {
        prop_assert_eq!(expand_env(&template.replace('$', "$$"), |_| None), template.clone());
        let _ = expand_env(&template, |name| Some(name.to_owned()));
    }
}
