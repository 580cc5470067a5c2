//! Parsing of `kernel.json` as in Python, so that kernelspecs that work with `jupyter_client` work here.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

use super::Kernelspec;

/// Error of parsing a kernelspec.
pub(super) struct Malformed {
    /// Path of the invalid member with a colon, such as `env.LANG: `, empty if the text is not a JSON object.
    pub(super) member: String,
    pub(super) source: serde_json::Error,
}

/// Parses a kernelspec. If a member occurs several times, the last one is used. `NaN` and the infinities become null.
pub(super) fn parse(json: &[u8]) -> Result<Kernelspec, Malformed> {
    let not_json = |source| Malformed {
        member: String::new(),
        source,
    };
    let value: Value = serde_json::from_slice(json)
        .or_else(|_| serde_json::from_slice(&without_nan(json)))
        .map_err(not_json)?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let member = match error.path().to_string() {
            root if root == "." => String::new(),
            member => format!("{member}: "),
        };
        Malformed {
            member,
            source: error.into_inner(),
        }
    })
}

/// Replaces the numbers that Python's `json` accepts but JSON does not allow with null.
fn without_nan(json: &[u8]) -> Vec<u8> {
    let mut cleaned = Vec::with_capacity(json.len());
    let mut rest = json;
    let mut in_string = false;
    while let Some((&first, after)) = rest.split_first() {
        let nan = [&b"NaN"[..], b"-Infinity", b"Infinity"];
        let found = nan.into_iter().find(|nan| !in_string && rest.starts_with(nan));
        rest = match (found, first, after) {
            (Some(nan), ..) => {
                cleaned.extend_from_slice(b"null");
                &rest[nan.len()..]
            }
            (None, b'\\', [escaped, after @ ..]) if in_string => {
                cleaned.extend_from_slice(&[first, *escaped]);
                after
            }
            _ => {
                in_string ^= first == b'"';
                cleaned.push(first);
                after
            }
        };
    }
    cleaned
}

/// Deserializes environment variables. Numbers become text.
pub(super) fn env<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    /// Value of a variable. A separate type, so that errors contain the path of the value.
    struct Text(String);

    impl<'de> Deserialize<'de> for Text {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            #[derive(Deserialize)]
            #[serde(untagged)]
            enum TextOrNumber {
                Text(String),
                Number(Number),
            }
            match TextOrNumber::deserialize(deserializer) {
                Ok(TextOrNumber::Text(text)) => Ok(Self(text)),
                Ok(TextOrNumber::Number(number)) => Ok(Self(number.to_string())),
                Err(_) => Err(D::Error::custom("an environment variable must be a string or a number")),
            }
        }
    }
    let env = Option::<BTreeMap<String, Text>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(env.into_iter().map(|(name, Text(text))| (name, text)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(json: &str) -> Result<Kernelspec, String> {
        parse(json.as_bytes()).map_err(|error| format!("{}{}", error.member, error.source))
    }

    #[test]
    fn parses_what_python_parses() {
        let parsed = spec(
            r#"{"argv": ["a"], "argv": ["b", "NaN \" Infinity"], "mine": 1, "mine": 2,
                "env": {"OMP_NUM_THREADS": 4, "HALF": 0.5, "LANG": "C", "LANG": "D"},
                "metadata": {"ratios": [NaN, -Infinity, Infinity, 1]}}"#,
        )
        .unwrap();
        assert_eq!(parsed.argv, ["b", "NaN \" Infinity"]);
        assert_eq!(parsed.extra["mine"], json!(2));
        let env: Vec<_> = parsed.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(env, [("HALF", "0.5"), ("LANG", "D"), ("OMP_NUM_THREADS", "4")]);
        assert_eq!(parsed.metadata["ratios"], json!([null, null, null, 1]));
    }

    #[test]
    fn errors_name_the_invalid_member() {
        for (json, place) in [
            ("{\n \"argv\": nan}", "line 2 column 11"),
            (r#"{"argv": "x"}"#, "argv: invalid type: string"),
            (r#"{"argv": ["x", 7]}"#, "argv[1]: invalid type: integer"),
            (
                r#"{"env": {"A": "x", "B": [1]}}"#,
                "env.B: an environment variable must",
            ),
            (r#"{"interrupt_mode": "shout"}"#, "interrupt_mode: "),
            ("[NaN,\nnope]", "line 2"),
        ] {
            let error = spec(json).unwrap_err();
            assert!(error.contains(place), "{json}: {error}");
        }
    }
}
