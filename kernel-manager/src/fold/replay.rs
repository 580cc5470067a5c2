use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::content::json_string;
use super::list::{Bundle, Item};
use super::terminal::StreamText;
use super::{Fold, content};

/// Longest text of a `stream` message, in bytes, or in UTF-16 units for the last line. Proxies accept messages of this
/// size even if every character is escaped.
const PIECE: usize = 1 << 20;

/// Message types and contents.
type Messages = Vec<(&'static str, Bytes)>;

#[derive(Serialize)]
struct Clear {
    wait: bool,
}

#[derive(Serialize)]
struct Stream<'a> {
    name: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct RawStream<'a> {
    name: &'a str,
    text: &'a RawValue,
}

#[derive(Serialize)]
struct Transient<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    display_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Display<'a> {
    data: &'a RawValue,
    metadata: &'a RawValue,
    transient: Transient<'a>,
}

#[derive(Serialize)]
struct ExecuteResult<'a> {
    execution_count: u64,
    data: &'a RawValue,
    metadata: &'a RawValue,
}

#[derive(Serialize)]
struct Error<'a> {
    ename: &'a str,
    evalue: &'a str,
    traceback: &'a [String],
}

impl Fold {
    /// The message types and contents that make a client's cell show the fold, whatever it shows now: `clear_output`,
    /// the outputs, and a `clear_output` with `wait` if one is pending. Applying them twice changes nothing.
    ///
    /// The caller adds headers with the original request as parent and sends the messages on iopub. Their `session`
    /// must be the kernel's: JupyterLab drops a display with a `display_id` if a message of another session arrives
    /// while it handles the display. After them, the caller sends an open [`input_request`](Self::input_request). Later
    /// log entries continue where the fold ends, even in the middle of a progress bar's line. If the `execute_reply` is
    /// sent again, send it [`without_pager`], because its pager output is among these outputs.
    #[must_use]
    pub fn messages(&self) -> Vec<(&'static str, Bytes)> {
        let mut messages = Messages::new();
        add(&mut messages, "clear_output", &Clear { wait: false });
        let (head, tail) = self.list.parts();
        for item in head {
            self.replay(item, &mut messages);
        }
        if let Some(marker) = self.marker() {
            self.replay(&marker, &mut messages);
        }
        for item in tail {
            self.replay(item, &mut messages);
        }
        if self.clear_pending() {
            add(&mut messages, "clear_output", &Clear { wait: true });
        }
        messages
    }

    fn replay(&self, item: &Item, messages: &mut Messages) {
        let display = |bundle: &Bundle, display_id, messages: &mut _| {
            let display = Display {
                data: &bundle.data,
                metadata: &bundle.metadata,
                transient: Transient { display_id },
            };
            add(messages, "display_data", &display);
        };
        match item {
            Item::Stream { name, text } => stream(name, text, messages),
            Item::Display(bundle) => display(bundle, None, messages),
            Item::Named(id) => {
                if let Some(bundle) = self.list.bundle_of(id) {
                    display(bundle, Some(id), messages);
                }
            }
            // The result is sent without its display_id: results are never updated, and the displays that this result
            // updated are sent with their new content.
            Item::Result {
                execution_count,
                bundle,
            } => {
                let result = ExecuteResult {
                    execution_count: execution_count.unwrap_or_default(),
                    data: &bundle.data,
                    metadata: &bundle.metadata,
                };
                add(messages, "execute_result", &result);
            }
            Item::Error {
                ename,
                evalue,
                traceback,
            } => {
                let error = Error {
                    ename,
                    evalue,
                    traceback,
                };
                add(messages, "error", &error);
            }
        }
    }
}

fn stream(name: &str, text: &StreamText, messages: &mut Messages) {
    let (mut done, line) = (text.done(), text.last_line());
    // A stream without text is an output, too.
    while !done.is_empty() || line.is_empty() {
        let (text, rest) = done.split_at(done.floor_char_boundary(PIECE));
        add(messages, "stream", &Stream { name, text });
        done = rest;
        if done.is_empty() {
            break;
        }
    }
    for piece in line.chunks(PIECE) {
        if let Some(text) = json_string(piece) {
            add(messages, "stream", &RawStream { name, text: &text });
        }
    }
}

/// Adds a message. None is skipped, because strings, numbers and validated JSON always serialize.
fn add(messages: &mut Messages, msg_type: &'static str, content: &impl Serialize) {
    if let Ok(content) = serde_json::to_vec(content) {
        messages.push((msg_type, content.into()));
    }
}

/// The content of an `execute_reply` without its pager output, to send after [`Fold::messages`]. With the pager output,
/// JupyterLab would show the first page a second time.
#[must_use]
pub fn without_pager(content: &Bytes) -> Bytes {
    content::without_pager(&content::text(content)).map_or_else(|| content.clone(), Bytes::from)
}
