//! Folds the messages of one execution into the outputs that a notebook cell shows.
//!
//! The log holds every message verbatim. A [`Fold`] processes an execution's messages as JupyterLab 4.6 does: it
//! joins text of the same stream and applies `\r`, `\b` and `\n`, so that a progress bar is one line;
//! `clear_output` clears now or before the next output; `update_display_data` changes earlier displays; and an
//! `input_request` stays open until it is answered. Messages that JupyterLab refuses or does not show are skipped.
//!
//! ```
//! use bytes::Bytes;
//! use jupyter_protocol::{Channel, WireMessage};
//! use kernel_manager::fold::{Fold, FoldLimits};
//!
//! let mut fold = Fold::new(FoldLimits::default());
//! for text in [r"1 %\r", r"50 %\r", r"100 %\n", "done"] {
//!     let content = format!(r#"{{"name":"stdout","text":"{text}"}}"#);
//!     let parts = [r#"{"msg_id":"7","msg_type":"stream"}"#, r#"{"msg_id":"6"}"#, "{}", &content];
//!     fold.apply(Channel::Iopub, &WireMessage::from_parts(parts.map(|part| Bytes::from(part.to_owned())), []));
//! }
//! let outputs = serde_json::to_string(&fold.outputs()).unwrap();
//! assert_eq!(outputs, r#"[{"output_type":"stream","name":"stdout","text":"100 %\ndone"}]"#);
//!
//! // With these two messages, a client that may have missed some text shows the same outputs.
//! let types: Vec<_> = fold.messages().iter().map(|(msg_type, _)| *msg_type).collect();
//! assert_eq!(types, ["clear_output", "stream"]);
//! ```
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel>

mod content;
mod list;
mod output;
mod replay;
mod terminal;

use std::sync::Arc;

use jupyter_protocol::header::HeaderRef;
use jupyter_protocol::{Channel, WireMessage};

use content::{Count, Written};
use list::{Bundle, Item, List};

pub use output::Output;
pub use replay::without_pager;

/// Shown in place of a password.
const HIDDEN: &str = "········";

/// The most buffer capacity kept between messages.
const MAX_BUFFER: usize = 64 << 10;

/// Limits of a fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoldLimits {
    /// Limit on the bytes of text and data of all outputs; 64 MiB by default, at least 4 KiB. Beyond the limit, outputs
    /// in the middle are replaced by a note.
    pub max_bytes: usize,
}

impl FoldLimits {
    /// The minimum of [`max_bytes`](Self::max_bytes).
    pub const MIN_BYTES: usize = 4 << 10;

    /// Limits with this many bytes of outputs.
    #[must_use]
    pub const fn max_bytes(max_bytes: usize) -> Self {
        Self { max_bytes }
    }
}

impl Default for FoldLimits {
    fn default() -> Self {
        Self::max_bytes(64 << 20)
    }
}

/// The folded messages of one execution.
///
/// Folding cannot fail: invalid messages, and those that JupyterLab would refuse, are ignored.
#[derive(Debug)]
pub struct Fold {
    list: List,
    clear_pending: bool,
    execution_count: Option<u64>,
    input_request: Option<WireMessage>,
    /// The size of all outputs in bytes just after the last note about missing messages was added.
    noted_missing: Option<usize>,
    /// Buffer for the text of one message.
    buffer: String,
}

impl Default for Fold {
    fn default() -> Self {
        Self::new(FoldLimits::default())
    }
}

impl Fold {
    /// An empty fold.
    #[must_use]
    pub fn new(limits: FoldLimits) -> Self {
        Self {
            list: List::new(limits.max_bytes.max(FoldLimits::MIN_BYTES)),
            clear_pending: false,
            execution_count: None,
            input_request: None,
            noted_missing: None,
            buffer: String::new(),
        }
    }

    /// Applies the next message in log order. The caller passes the messages on iopub, shell and stdin whose parent is
    /// the execution's request, including late ones, and clients' `input_reply`s. Message types that do not change the
    /// fold are ignored.
    ///
    /// An `input_reply` of any client answers the open [`input_request`](Self::input_request) if its parent is that
    /// message (as in JupyterLab) or the execution's request, or if it has no parent.
    pub fn apply(&mut self, channel: Channel, message: &WireMessage) {
        let text = content::text(message.content());
        if channel == Channel::Iopub && content::is_stream(message.header()) {
            return self.on_stream(&text);
        }
        let Ok(header) = message.header_ref() else { return };
        let text = content::finite(&text);
        match (channel, &*header.msg_type) {
            (Channel::Iopub, "stream") => self.on_stream(&text),
            (Channel::Iopub, "display_data") => self.display(&text),
            (Channel::Iopub, "update_display_data") => {
                self.update(&text);
            }
            (Channel::Iopub, "execute_result") => self.result(&text),
            (Channel::Iopub, "error") => {
                if let Some((ename, evalue, traceback)) = content::error(&text) {
                    self.clear_if_pending();
                    self.list.add(Item::Error {
                        ename,
                        evalue,
                        traceback,
                    });
                }
            }
            (Channel::Iopub, "clear_output") => match content::clear(&text) {
                Some(true) => {
                    self.list.stop_joining();
                    self.clear_pending = true;
                }
                // A pending clear stays pending.
                Some(false) => self.list.clear(),
                None => {}
            },
            (Channel::Iopub, "execute_input") => self.set_execution_count(&text),
            (Channel::Shell, "execute_reply") => {
                self.set_execution_count(&text);
                if let Some(page) = content::page(&text) {
                    self.clear_if_pending();
                    self.list.display(None, page);
                }
            }
            (Channel::Stdin, "input_request") => self.input_request = Some(message.clone()),
            (Channel::Stdin, "input_reply") => self.answer(message, &text),
            _ => {}
        }
    }

    /// Applies the content of another execution's `display_data`, `update_display_data` or `execute_result` to all
    /// outputs with the same `display_id`. Returns whether there are any.
    pub fn update_display(&mut self, content: &[u8]) -> bool {
        self.update(&content::finite(&content::text(content)))
    }

    /// Adds a text on stderr in place of messages that are missing between two outputs. Does nothing and returns false
    /// before the first output and directly after another such text.
    pub(crate) fn note_missing(&mut self, text: &str) -> bool {
        let size = self.list.size();
        if size == 0 || self.noted_missing == Some(size) {
            return false;
        }
        self.list.stop_joining();
        self.list.stream("stderr", |stream| stream.write(text));
        self.list.stop_joining();
        self.noted_missing = Some(self.list.size());
        true
    }

    /// The outputs in nbformat.
    #[must_use]
    pub fn outputs(&self) -> Vec<Output> {
        self.each_output().collect()
    }

    /// Iterates over the outputs; each is copied when it is requested.
    pub fn each_output(&self) -> impl Iterator<Item = Output> {
        let (head, tail) = self.list.parts();
        let marker = self.marker().and_then(|marker| self.list.output(&marker));
        let output = |item| self.list.output(item);
        head.filter_map(output).chain(marker).chain(tail.filter_map(output))
    }

    /// Approximate size of the outputs in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.list.size()
    }

    /// The `display_id`s of the outputs, in no particular order. Updates of other displays change nothing here.
    #[must_use]
    pub fn display_ids(&self) -> Vec<Arc<str>> {
        self.list.display_ids()
    }

    /// The kernel's execution counter, once known.
    #[must_use]
    pub fn execution_count(&self) -> Option<u64> {
        self.execution_count
    }

    /// The unanswered `input_request`, as the kernel sent it.
    ///
    /// It stays open when outputs, the reply or `idle` follow, as after an interrupt. The caller decides whether it can
    /// still be answered.
    #[must_use]
    pub fn input_request(&self) -> Option<&WireMessage> {
        self.input_request.as_ref()
    }

    /// Whether a `clear_output` with `wait` is pending, so that the next output replaces the current ones.
    #[must_use]
    pub fn clear_pending(&self) -> bool {
        self.clear_pending
    }

    /// Whether outputs were left out because of [`FoldLimits::max_bytes`].
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.list.omitted().is_some()
    }

    /// Size of the left-out outputs in bytes.
    #[must_use]
    pub fn omitted_bytes(&self) -> u64 {
        self.list.omitted().map_or(0, |omitted| omitted.bytes)
    }

    fn on_stream(&mut self, text: &str) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some((name, written)) = content::stream(text, &mut buffer) {
            self.stream(&name, &written);
        }
        if buffer.capacity() <= MAX_BUFFER {
            self.buffer = buffer;
        }
    }

    fn stream(&mut self, name: &str, written: &Written<'_>) {
        self.clear_if_pending();
        self.list.stream(name, |stream| match written {
            Written::Text(text) => stream.write(text),
            Written::Units(units) => stream.write_units(units),
        });
    }

    fn display(&mut self, text: &str) {
        if let Some(display) = content::display(text).filter(|display| display.whole) {
            let id = display.display_id.as_deref();
            if let Some(id) = id {
                self.list.update(id, &display.bundle);
            }
            self.clear_if_pending();
            self.list.display(id, display.bundle);
        }
    }

    fn update(&mut self, text: &str) -> bool {
        content::display(text).is_some_and(|display| {
            let id = display.display_id.as_deref();
            id.is_some_and(|id| self.list.update(id, &display.bundle))
        })
    }

    fn result(&mut self, text: &str) {
        if let Some(display) = content::display(text).filter(|display| display.whole)
            && let Some(Count(execution_count)) = display.execution_count
        {
            if let Some(id) = &display.display_id {
                self.list.update(id, &display.bundle);
            }
            self.clear_if_pending();
            self.execution_count = execution_count.or(self.execution_count);
            self.list.add(Item::Result {
                execution_count,
                bundle: display.bundle,
            });
        }
    }

    fn set_execution_count(&mut self, text: &str) {
        self.execution_count = content::execution_count(text).or(self.execution_count);
    }

    /// Answers the open `input_request`. Prompt and answer become text of a separate stream, as in JupyterLab.
    fn answer(&mut self, reply: &WireMessage, text: &str) {
        let Some(request) = self.input_request.take_if(|request| answers(reply, request)) else {
            return;
        };
        let Some(value) = content::input_reply(text) else {
            return;
        };
        let (prompt, password) = content::input_request(&content::text(request.content()));
        let value = if password { HIDDEN } else { &value };
        self.stream("stdin", &Written::Text(&format!("{prompt} {value}\n")));
    }

    fn clear_if_pending(&mut self) {
        if std::mem::take(&mut self.clear_pending) {
            self.list.clear();
        }
    }

    /// The note in place of left-out outputs.
    fn marker(&self) -> Option<Item> {
        let omitted = self.list.omitted()?;
        let outputs = match omitted.outputs {
            0 => String::new(),
            1 => ", including a whole output,".to_owned(),
            outputs => format!(", including {outputs} whole outputs,"),
        };
        let text = format!(
            "[{} bytes of output{outputs} are left out here; they are in the kernel's log]",
            omitted.bytes
        );
        let data = serde_json::json!({ "text/plain": text }).to_string();
        let data = serde_json::value::RawValue::from_string(data).ok()?;
        Some(Item::Display(Bundle {
            data: data.into(),
            metadata: content::empty(),
        }))
    }
}

/// Whether this `input_reply` can answer this `input_request`: its parent is the `input_request` or the execution's
/// request, or it has no valid parent.
pub(crate) fn answers(reply: &WireMessage, request: &WireMessage) -> bool {
    let Ok(parent) = reply.parent_ref() else { return true };
    let is = |header: Result<HeaderRef<'_>, _>| header.is_ok_and(|header| header.msg_id == parent.msg_id);
    parent.msg_id.is_empty() || is(request.header_ref()) || is(request.parent_ref())
}
