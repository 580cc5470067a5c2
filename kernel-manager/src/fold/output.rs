use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An output as notebooks store it, in nbformat 4.5.
///
/// Extra fields of a kernel's messages are omitted, because nbformat does not allow them.
///
/// <https://nbformat.readthedocs.io/en/latest/format_description.html#code-cell-outputs>
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "output_type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Output {
    /// Text of a standard stream.
    Stream {
        /// The stream's name, usually `stdout` or `stderr`; `stdin` for a question with its answer, as in JupyterLab.
        name: String,
        /// The displayed text, without `\r` and `\b`.
        text: String,
    },
    /// A display.
    DisplayData {
        /// MIME type → data, verbatim; always an object.
        #[serde(serialize_with = "raw")]
        data: Arc<RawValue>,
        /// Metadata of the representations, verbatim; always an object.
        #[serde(serialize_with = "raw")]
        metadata: Arc<RawValue>,
        /// The id that `update_display_data` refers to. Not part of the JSON.
        #[serde(skip)]
        display_id: Option<Arc<str>>,
    },
    /// The value of the code.
    ExecuteResult {
        /// The kernel's execution counter.
        execution_count: Option<u64>,
        /// MIME type → data, verbatim; always an object.
        #[serde(serialize_with = "raw")]
        data: Arc<RawValue>,
        /// Metadata of the representations, verbatim; always an object.
        #[serde(serialize_with = "raw")]
        metadata: Arc<RawValue>,
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
}

impl Output {
    /// The plain text of a display or a value; `None` for other outputs, and if there is no plain text.
    #[must_use]
    pub fn plain_text(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Text {
            Whole(String),
            Lines(Vec<String>),
        }
        #[derive(serde::Deserialize)]
        struct Data {
            #[serde(rename = "text/plain")]
            plain: Option<Text>,
        }
        let (Self::DisplayData { data, .. } | Self::ExecuteResult { data, .. }) = self else {
            return None;
        };
        match serde_json::from_str::<Data>(data.get()).ok()?.plain? {
            Text::Whole(text) => Some(text),
            Text::Lines(lines) => Some(lines.concat()),
        }
    }
}

fn raw<S: Serializer>(json: &Arc<RawValue>, serializer: S) -> Result<S::Ok, S::Error> {
    json.as_ref().serialize(serializer)
}
