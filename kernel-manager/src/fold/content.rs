//! Parses message contents as strictly as JupyterLab. The result is `None` for contents that JupyterLab refuses.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use jupyter_protocol::content::whole_number;
use memchr::{memchr, memmem};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::list::Bundle;

/// The content as text. Invalid UTF-8 becomes U+FFFD, as in browsers.
pub(super) fn text(content: &[u8]) -> Cow<'_, str> {
    // Validating first is much faster than the lossy conversion.
    simdutf8::basic::from_utf8(content).map_or_else(|_| String::from_utf8_lossy(content), Cow::Borrowed)
}

/// Replaces `NaN` and `Infinity`, which Python's encoder writes, with `null`.
pub(super) fn finite(content: &str) -> Cow<'_, str> {
    static NAN: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("NaN"));
    static INFINITY: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("Infinity"));

    // Searching for these names first is much faster than scanning every message for strings.
    if NAN.find(content.as_bytes()).is_none() && INFINITY.find(content.as_bytes()).is_none() {
        return Cow::Borrowed(content);
    }
    jupyter_protocol::json::finite(content)
}

/// Whether the header's type is `stream`, as for most messages. The caller parses only the other headers, which halves
/// the time of folding.
///
/// `true` is certain, but `false` is not. Quotes inside strings are escaped, so a match before the first nested object
/// is the header's own field.
pub(super) fn is_stream(header: &[u8]) -> bool {
    static MSG_TYPE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(r#""msg_type":"#));

    let Some((b'{', fields)) = header.split_first() else {
        return false;
    };
    MSG_TYPE.find(fields).is_some_and(|at| {
        let value = fields[at + MSG_TYPE.needle().len()..].trim_ascii_start();
        value.starts_with(br#""stream""#) && memchr(b'{', &fields[..at]).is_none()
    })
}

/// A JSON string that may contain lone surrogates (`"\ud83d"`), which `serde_json` reads only as bytes.
struct Wtf8(Vec<u8>);

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl Visitor<'_> for BytesVisitor {
            type Value = Wtf8;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(BytesVisitor)
    }
}

impl Wtf8 {
    fn units(&self) -> Vec<u16> {
        let mut units = Vec::with_capacity(self.0.len());
        let mut rest = &self.0[..];
        // ED followed by A0 or more encodes a surrogate.
        while let Some(at) = rest.windows(3).position(|bytes| bytes[0] == 0xed && bytes[1] >= 0xa0) {
            units.extend(text(&rest[..at]).encode_utf16());
            units.push(0xd000 | u16::from(rest[at + 1] & 0x3f) << 6 | u16::from(rest[at + 2] & 0x3f));
            rest = &rest[at + 3..];
        }
        units.extend(text(rest).encode_utf16());
        units
    }
}

/// A JSON string in which lone surrogates become U+FFFD.
#[derive(Default)]
struct Lossy(String);

impl<'de> Deserialize<'de> for Lossy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::from_utf16_lossy(
            &Wtf8::deserialize(deserializer)?.units(),
        )))
    }
}

fn number(raw: &RawValue) -> Option<serde_json::Number> {
    serde_json::from_str(raw.get()).ok()
}

/// Text written to a stream.
#[derive(Debug)]
pub(super) enum Written<'a> {
    Text(&'a str),
    /// UTF-16 with lone surrogates.
    Units(Vec<u16>),
}

/// `stream`: the name and the text. If the text has escapes, it is decoded into `buffer`.
pub(super) fn stream<'a>(content: &'a str, buffer: &'a mut String) -> Option<(Cow<'a, str>, Written<'a>)> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        text: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct WithLoneSurrogates {
        name: Lossy,
        text: Wtf8,
    }
    if let Ok(Content { name, text }) = serde_json::from_str(content)
        && let Some(text) = unescaped(text.get(), buffer)
    {
        return Some((name, Written::Text(text)));
    }
    let WithLoneSurrogates { name, text } = serde_json::from_str(content).ok()?;
    Some((Cow::Owned(name.0), Written::Units(text.units())))
}

/// Decodes a JSON string; `None` if the JSON is not a string or contains a lone surrogate. The input is valid JSON.
fn unescaped<'a>(json: &'a str, buffer: &'a mut String) -> Option<&'a str> {
    let mut rest = json.strip_prefix('"')?.strip_suffix('"')?;
    let Some(mut at) = memchr(b'\\', rest.as_bytes()) else {
        return Some(rest);
    };
    buffer.clear();
    loop {
        buffer.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (character, length) = match rest.as_bytes().first()? {
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'b' => ('\u{8}', 1),
            b'f' => ('\u{c}', 1),
            b'u' => escaped_character(&rest[1..])?,
            // Escaped characters that stand for themselves.
            b'"' => ('"', 1),
            b'/' => ('/', 1),
            b'\\' => ('\\', 1),
            _ => return None,
        };
        buffer.push(character);
        rest = &rest[length..];
        match memchr(b'\\', rest.as_bytes()) {
            Some(next) => at = next,
            None => break,
        }
    }
    buffer.push_str(rest);
    Some(buffer)
}

/// Decodes the four digits after `\u`, and the second escape of a surrogate pair. Returns the character and the
/// consumed length, including the `u`; `None` for a lone surrogate.
fn escaped_character(digits: &str) -> Option<(char, usize)> {
    let unit = |digits: &str| u16::from_str_radix(digits.get(..4)?, 16).ok();
    let first = unit(digits)?;
    if let Some(character) = char::from_u32(first.into()) {
        return Some((character, 5));
    }
    let second = unit(digits[4..].strip_prefix("\\u")?)?;
    let character = char::decode_utf16([first, second]).next()?.ok()?;
    Some((character, 11))
}

/// An object verbatim; anything else becomes an empty one. Lone surrogates become U+FFFD, because many parsers refuse
/// them.
fn object(raw: &RawValue) -> Arc<RawValue> {
    if !raw.get().starts_with('{') {
        return empty();
    }
    match without_lone_surrogates(raw.get()).and_then(|json| RawValue::from_string(json).ok()) {
        Some(json) => Arc::from(json),
        None => Arc::from(raw.to_owned()),
    }
}

/// The JSON with escapes of lone surrogates replaced; `None` if it has none.
fn without_lone_surrogates(json: &str) -> Option<String> {
    // The UTF-16 unit of the `\u` escape that begins at `at`, if there is one.
    let escape = |at: usize| -> Option<u16> {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut lone_surrogates = Vec::new();
    let mut at = 0;
    while let Some(backslash) = memchr(b'\\', &json.as_bytes()[at..]) {
        at += backslash;
        at += match escape(at) {
            Some(0xd800..0xdc00) if matches!(escape(at + 6), Some(0xdc00..0xe000)) => 12,
            Some(0xd800..0xe000) => {
                lone_surrogates.push(at);
                6
            }
            Some(_) => 6,
            None => 2,
        };
    }
    if lone_surrogates.is_empty() {
        return None;
    }
    let mut replaced = json.to_owned();
    for at in lone_surrogates {
        replaced.replace_range(at..at + 6, "\\ufffd");
    }
    Some(replaced)
}

pub(super) fn empty() -> Arc<RawValue> {
    Arc::from(serde_json::from_str::<Box<RawValue>>("{}").unwrap_or_else(|_| RawValue::NULL.to_owned()))
}

/// `display_data`, `update_display_data` or `execute_result`.
pub(super) struct Display<'a> {
    pub(super) bundle: Bundle,
    /// Whether both data and metadata are present. Updates do not require them.
    pub(super) whole: bool,
    pub(super) display_id: Option<Cow<'a, str>>,
    /// The counter of a result; `None` if it is missing or not a number, so that JupyterLab refuses the result.
    pub(super) execution_count: Option<Count>,
}

/// A number; `None` if it cannot be a counter.
pub(super) struct Count(pub(super) Option<u64>);

/// Deserializes a field so that null counts as present.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

pub(super) fn display(content: &str) -> Option<Display<'_>> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        data: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        metadata: Option<&'a RawValue>,
        #[serde(borrow, default)]
        transient: Option<&'a RawValue>,
        #[serde(borrow, default)]
        execution_count: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Transient<'a> {
        #[serde(borrow)]
        display_id: Cow<'a, str>,
    }
    let content: Content<'_> = serde_json::from_str(content).ok()?;
    let display_id = content
        .transient
        .and_then(|transient| serde_json::from_str::<Transient<'_>>(transient.get()).ok())
        .map(|transient| transient.display_id)
        .filter(|id| !id.is_empty());
    Some(Display {
        bundle: Bundle {
            data: content.data.map_or_else(empty, object),
            metadata: content.metadata.map_or_else(empty, object),
        },
        whole: content.data.is_some() && content.metadata.is_some(),
        display_id,
        execution_count: content
            .execution_count
            .and_then(number)
            .map(|number| Count(whole_number(&number))),
    })
}

/// `error`: `ename`, `evalue` and the traceback.
pub(super) fn error(content: &str) -> Option<(String, String, Vec<String>)> {
    #[derive(Deserialize)]
    struct Content<'a> {
        ename: Lossy,
        evalue: Lossy,
        #[serde(borrow)]
        traceback: Vec<&'a RawValue>,
    }
    let content: Content<'_> = serde_json::from_str(content).ok()?;
    let line =
        |raw: &&RawValue| serde_json::from_str(raw.get()).map_or_else(|_| raw.get().to_owned(), |Lossy(line)| line);
    let traceback = content.traceback.iter().map(line).collect();
    Some((content.ename.0, content.evalue.0, traceback))
}

/// `clear_output`: whether to wait.
pub(super) fn clear(content: &str) -> Option<bool> {
    #[derive(Deserialize)]
    struct Content {
        wait: bool,
    }
    serde_json::from_str(content).ok().map(|Content { wait }| wait)
}

/// `execute_input`, `execute_reply`: the counter.
pub(super) fn execution_count(content: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Content {
        execution_count: serde_json::Number,
    }
    let content: Content = serde_json::from_str(content).ok()?;
    whole_number(&content.execution_count)
}

/// `execute_reply`: pager output, if any. JupyterLab shows the first page as an output.
pub(super) fn page(content: &str) -> Option<Bundle> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        status: Cow<'a, str>,
        #[serde(borrow)]
        payload: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        source: Cow<'a, str>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let content: Content<'_> = serde_json::from_str(content).ok()?;
    if content.status != "ok" {
        return None;
    }
    let page = content
        .payload
        .iter()
        .filter_map(|payload| serde_json::from_str::<Payload<'_>>(payload.get()).ok())
        .find(|payload| payload.source == "page")?;
    Some(Bundle {
        data: page.data.map_or_else(empty, object),
        metadata: empty(),
    })
}

/// `input_request`: the prompt, and whether the answer is a password.
pub(super) fn input_request(content: &str) -> (String, bool) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Content {
        prompt: Lossy,
        password: bool,
    }
    let content: Content = serde_json::from_str(content).unwrap_or_default();
    (content.prompt.0, content.password)
}

/// `input_reply`: the answer.
pub(super) fn input_reply(content: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        value: Lossy,
    }
    let content: Content = serde_json::from_str(content).ok()?;
    Some(content.value.0)
}

/// The content without the pages in its payload; `None` if the payload has none.
pub(super) fn without_pager(content: &str) -> Option<Vec<u8>> {
    use serde_json::Value;

    page(content)?;
    let mut content: serde_json::Map<String, Value> = serde_json::from_str(content).ok()?;
    if let Some(Value::Array(payload)) = content.get_mut("payload") {
        payload.retain(|payload| payload.get("source").and_then(Value::as_str) != Some("page"));
    }
    serde_json::to_vec(&content).ok()
}

/// UTF-16 as a JSON string, with lone surrogates escaped.
pub(super) fn json_string(units: &[u16]) -> Option<Box<RawValue>> {
    let mut json = String::from("\"");
    let mut text = String::new();
    for unit in char::decode_utf16(units.iter().copied()) {
        match unit {
            Ok(character) => text.push(character),
            Err(surrogate) => {
                json.push_str(&escaped(&std::mem::take(&mut text))?);
                json.push_str(&format!("\\u{:04x}", surrogate.unpaired_surrogate()));
            }
        }
    }
    json.push_str(&escaped(&text)?);
    json.push('"');
    RawValue::from_string(json).ok()
}

/// The text as JSON writes it between quotes.
fn escaped(text: &str) -> Option<String> {
    let quoted = serde_json::to_string(text).ok()?;
    quoted.get(1..quoted.len() - 1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escape(character: char, way: u8) -> String {
        let mut units = [0; 2];
        match way {
            0 => character
                .encode_utf16(&mut units)
                .iter()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect(),
            1 if character == '/' => "\\/".to_owned(),
            _ => serde_json::to_string(&character).unwrap().trim_matches('"').to_owned(),
        }
    }

    proptest! {
        #[test]
        fn unescaped_strings_equal_those_of_a_parser(
            text in proptest::collection::vec((any::<char>(), 0..8_u8), 0..40),
        ) {
            let written: String = text.iter().map(|(character, way)| {
                // `escape` would trim this quote.
                if *character == '"' { "\\\"".to_owned() } else { escape(*character, *way) }
            }).collect();
            let json = format!("\"{written}\"");
            let expected: String = serde_json::from_str(&json).unwrap();
            let mut buffer = "left from before".to_owned();
            prop_assert_eq!(unescaped(&json, &mut buffer), Some(expected.as_str()));
        }
    }

    #[test]
    fn lone_surrogates_and_other_values_are_not_unescaped() {
        let mut buffer = String::new();
        for json in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\ud83d""#,
            r#""\ud83dx""#,
            r#""\ud83d\n""#,
            "7",
            "null",
            "[]",
        ] {
            assert_eq!(unescaped(json, &mut buffer), None, "{json}");
        }
        assert_eq!(unescaped(r#""a\ud83d\ude00b""#, &mut buffer), Some("a😀b"));
    }

    #[test]
    fn only_unambiguous_headers_are_recognized_as_streams() {
        for header in [
            r#"{"msg_type":"stream"}"#,
            r#"{"msg_id":"1","msg_type": "stream","x":[1]}"#,
            r#"{"x":"\"msg_type\":\"error\"","msg_type":"stream"}"#,
        ] {
            assert!(is_stream(header.as_bytes()), "{header}");
        }
        for header in [
            "",
            "[]",
            r#"{"msg_type":"error"}"#,
            r#"{"x":"msg_type","y":"stream"}"#,
            r#"{"x":{"msg_type":"stream"},"msg_type":"error"}"#,
            r#"{"x":"\"msg_type\":\"stream\"","msg_type":"error"}"#,
            r#"{"msg_type" : "stream"}"#,
        ] {
            assert!(!is_stream(header.as_bytes()), "{header}");
        }
    }

    #[test]
    fn lone_surrogates_in_json_are_replaced_and_pairs_stay() {
        for (json, expected) in [
            (r#""a\ud83d""#, Some(r#""a\ufffd""#)),
            (r#""\ud83d\ud83d\ude00\ude00""#, Some(r#""\ufffd\ud83d\ude00\ufffd""#)),
            (r#""\\ud83d \u00e9 \n \ud83d\ude00""#, None),
            (r#""\\\ud83dé""#, Some(r#""\\\ufffdé""#)),
        ] {
            assert_eq!(without_lone_surrogates(json).as_deref(), expected, "{json}");
        }
    }
}
