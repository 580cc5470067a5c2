//! Parsing of JSON as Python writes it, with `NaN` and `Infinity`, which standard parsers reject.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Parses JSON, with `NaN`, `Infinity` and `-Infinity` as null.
///
/// # Errors
/// The error of the parser, if the text is not such JSON or does not fit the type.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json).or_else(|error| match str::from_utf8(json).map(finite) {
        Ok(Cow::Owned(json)) => serde_json::from_str(&json),
        _ => Err(error),
    })
}

/// Replaces `NaN`, `Infinity` and `-Infinity` with null, except in strings.
///
/// Python's encoder writes these numbers, and hardly any other decoder accepts them.
#[must_use]
pub fn finite(json: &str) -> Cow<'_, str> {
    const NAMES: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

    let bytes = json.as_bytes();
    let mut out = String::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'N' | b'I' | b'-' if !in_string => {
                if let Some(name) = NAMES.iter().find(|name| bytes[at..].starts_with(name.as_bytes())) {
                    out.push_str(&json[copied..at]);
                    out.push_str("null");
                    at += name.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_become_null_except_in_strings() {
        for (json, expected) in [
            (
                r#"{"a":NaN,"b":[Infinity,-Infinity,-1]}"#,
                r#"{"a":null,"b":[null,null,-1]}"#,
            ),
            (
                r#"{"NaN":"\"NaN, Infinity","é":NaN}"#,
                r#"{"NaN":"\"NaN, Infinity","é":null}"#,
            ),
            (r#"["\\",NaN]"#, r#"["\\",null]"#),
            ("NaN", "null"),
        ] {
            assert_eq!(finite(json), expected);
        }
        for json in [r#"{"a":"NaN","b":-1}"#, "", "\"\\", "Nan", "{"] {
            assert!(matches!(finite(json), Cow::Borrowed(same) if same == json), "{json}");
        }
        assert_eq!(
            from_slice::<serde_json::Value>(b"[NaN,1]").unwrap(),
            serde_json::json!([null, 1])
        );
        assert!(from_slice::<serde_json::Value>(b"[NaN,").is_err());
    }
}
