use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// An output as notebooks store it, in nbformat 4.5.
///
/// <https://nbformat.readthedocs.io/en/latest/format_description.html#code-cell-outputs>
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "AnyOutput")]
#[non_exhaustive]
pub enum Output {
    /// Text of a standard stream.
    Stream {
        /// `stdout` or `stderr`; `stdin` for a question with its answer, as in JupyterLab.
        name: String,
        /// The displayed text.
        text: String,
    },
    /// A display.
    DisplayData {
        /// Data by MIME type, verbatim.
        data: BTreeMap<String, Box<RawValue>>,
        /// Metadata of the representations, verbatim.
        metadata: BTreeMap<String, Box<RawValue>>,
    },
    /// The value of the code.
    ExecuteResult {
        /// The kernel's execution counter.
        execution_count: Option<u64>,
        /// Data by MIME type, verbatim.
        data: BTreeMap<String, Box<RawValue>>,
        /// Metadata of the representations, verbatim.
        metadata: BTreeMap<String, Box<RawValue>>,
    },
    /// An exception.
    Error {
        /// Its type.
        ename: String,
        /// Its message.
        evalue: String,
        /// The lines of the traceback, with terminal colours.
        traceback: Vec<String>,
    },
    /// An output unknown to this version.
    Unknown {
        /// Its type.
        output_type: String,
    },
}

impl Output {
    /// Returns the text of a standard stream, the plain text of a display or a value, or the type and message of an
    /// error. Returns `None` if the output has no text.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Stream { text, .. } => Some(text.clone()),
            Self::DisplayData { data, .. } | Self::ExecuteResult { data, .. } => {
                let text = serde_json::from_str(data.get("text/plain")?.get()).ok()?;
                Some(match text {
                    PlainText::Whole(text) => text,
                    PlainText::Lines(lines) => lines.concat(),
                })
            }
            Self::Error { ename, evalue, .. } => Some(format!("{ename}: {evalue}")),
            Self::Unknown { .. } => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PlainText {
    Whole(String),
    Lines(Vec<String>),
}

/// All fields of all outputs, because serde's tagged enums cannot keep verbatim JSON.
#[derive(Deserialize)]
struct AnyOutput {
    output_type: String,
    name: Option<String>,
    text: Option<String>,
    data: Option<BTreeMap<String, Box<RawValue>>>,
    metadata: Option<BTreeMap<String, Box<RawValue>>>,
    execution_count: Option<u64>,
    ename: Option<String>,
    evalue: Option<String>,
    traceback: Option<Vec<String>>,
}

impl TryFrom<AnyOutput> for Output {
    type Error = String;

    fn try_from(output: AnyOutput) -> Result<Self, String> {
        let AnyOutput {
            output_type,
            data,
            metadata,
            ..
        } = output;
        let missing = |field: &str| format!("the output {output_type:?} has no {field:?}");
        let metadata = metadata.unwrap_or_default();
        Ok(match output_type.as_str() {
            "stream" => Self::Stream {
                name: output.name.ok_or_else(|| missing("name"))?,
                text: output.text.ok_or_else(|| missing("text"))?,
            },
            "display_data" => Self::DisplayData {
                data: data.ok_or_else(|| missing("data"))?,
                metadata,
            },
            "execute_result" => Self::ExecuteResult {
                execution_count: output.execution_count,
                data: data.ok_or_else(|| missing("data"))?,
                metadata,
            },
            "error" => Self::Error {
                ename: output.ename.ok_or_else(|| missing("ename"))?,
                evalue: output.evalue.ok_or_else(|| missing("evalue"))?,
                traceback: output.traceback.unwrap_or_default(),
            },
            _ => Self::Unknown { output_type },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Output, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn each_kind_of_output_has_its_text_and_unknown_ones_parse() {
        for (json, text) in [
            (
                r#"{"output_type":"stream","name":"stdout","text":"a\n","new":1}"#,
                Some("a\n"),
            ),
            (
                r#"{"output_type":"display_data","data":{"text/plain":["a\n","b"],"image/png":"…"},"metadata":{}}"#,
                Some("a\nb"),
            ),
            (
                r#"{"output_type":"execute_result","execution_count":3,"data":{"text/plain":"42"},"metadata":{}}"#,
                Some("42"),
            ),
            (r#"{"output_type":"display_data","data":{"text/html":"<b>"}}"#, None),
            (
                r#"{"output_type":"error","ename":"KeyError","evalue":"'a'","traceback":["…"]}"#,
                Some("KeyError: 'a'"),
            ),
            (r#"{"output_type":"hologram","data":{}}"#, None),
        ] {
            assert_eq!(parse(json).unwrap().text().as_deref(), text, "{json}");
        }
    }

    #[test]
    fn an_output_without_its_fields_is_an_error() {
        let error = parse(r#"{"output_type":"stream","name":"stdout"}"#).unwrap_err();
        assert!(error.to_string().contains("has no \"text\""), "{error}");
        assert!(parse(r#"{"name":"stdout","text":""}"#).is_err());
    }

    #[test]
    fn deeply_nested_data_is_kept_verbatim() {
        let nested = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        let json = format!(r#"{{"output_type":"display_data","data":{{"application/json":{nested}}}}}"#);
        let Output::DisplayData { data, .. } = parse(&json).unwrap() else {
            panic!("not a display")
        };
        assert_eq!(data["application/json"].get(), nested);
    }
}
