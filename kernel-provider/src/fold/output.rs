use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An output as a notebook holds it: its JSON is nbformat 4.5's.
///
/// What kernels add to a message beyond the protocol's fields is not part of it, since nbformat has no room for it.
///
/// <https://nbformat.readthedocs.io/en/latest/format_description.html#code-cell-outputs>
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "output_type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Output {
    /// Text of a standard stream.
    Stream {
        /// `stdout` or `stderr`; `stdin` for a question and its answer, as JupyterLab keeps them.
        name: String,
        /// The text as it is shown: without `\r` and `\b`.
        text: String,
    },
    /// What the code displayed.
    DisplayData {
        /// MIME type → data, as the kernel wrote it; always an object.
        #[serde(serialize_with = "raw")]
        data: Arc<RawValue>,
        /// More about the representations, as the kernel wrote it; always an object.
        #[serde(serialize_with = "raw")]
        metadata: Arc<RawValue>,
        /// The name by which `update_display_data` finds the output. Not part of the JSON.
        #[serde(skip)]
        display_id: Option<Arc<str>>,
    },
    /// The value of the code.
    ExecuteResult {
        /// The kernel's execution counter.
        execution_count: Option<u64>,
        /// MIME type → data, as the kernel wrote it; always an object.
        #[serde(serialize_with = "raw")]
        data: Arc<RawValue>,
        /// More about the representations, as the kernel wrote it; always an object.
        #[serde(serialize_with = "raw")]
        metadata: Arc<RawValue>,
    },
    /// An exception.
    Error {
        /// Its name.
        ename: String,
        /// Its value, as text.
        evalue: String,
        /// The traceback's lines, with terminal colours.
        traceback: Vec<String>,
    },
}

fn raw<S: Serializer>(json: &Arc<RawValue>, serializer: S) -> Result<S::Ok, S::Error> {
    json.as_ref().serialize(serializer)
}
