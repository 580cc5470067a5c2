//! What a cell shows: the messages of one execution, folded into the outputs of a notebook.
//!
//! The log holds every message as it came; a [`Fold`] makes of an execution's messages what JupyterLab 4.6 makes of them
//! and saves: text of the same stream is joined, with `\r`, `\b` and `\n` as its output area has them (a progress bar is
//! one line), `clear_output` clears now or before the next output, `update_display_data` changes what was displayed, and
//! a question on stdin stays open until it is answered. Messages that JupyterLab refuses or does not show are passed
//! over.
//!
//! ```
//! use bytes::Bytes;
//! use jupyter_protocol::{Channel, WireMessage};
//! use kernel_provider::fold::{Fold, FoldLimits};
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
//! // A client that may have missed some of it is brought to the same with two messages.
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
pub use replay::without_pages;

/// What an answer that must not be shown is shown as.
const HIDDEN: &str = "········";

/// Room for text that is kept from one message to the next, at the most.
const MOST_ROOM: usize = 64 << 10;

/// How much a fold may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoldLimits {
    /// Bytes of all outputs, text and data; 64 MiB unless set otherwise, and at least 4 KiB. Beyond it the outputs in
    /// the middle are left out, with a text in their place that says so.
    pub max_bytes: usize,
}

impl FoldLimits {
    /// The least that [`max_bytes`](Self::max_bytes) counts as.
    pub const LEAST_BYTES: usize = 4 << 10;

    /// With this many bytes.
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

/// The messages of one execution, folded.
///
/// Nothing fails: what is no message, or one that JupyterLab would refuse, changes nothing.
#[derive(Debug)]
pub struct Fold {
    list: List,
    clear_pending: bool,
    execution_count: Option<u64>,
    input_request: Option<WireMessage>,
    /// For one message's text after the other.
    room: String,
}

impl Default for Fold {
    fn default() -> Self {
        Self::new(FoldLimits::default())
    }
}

impl Fold {
    /// Of no message yet.
    #[must_use]
    pub fn new(limits: FoldLimits) -> Self {
        Self {
            list: List::new(limits.max_bytes.max(FoldLimits::LEAST_BYTES)),
            clear_pending: false,
            execution_count: None,
            input_request: None,
            room: String::new(),
        }
    }

    /// Takes the execution's next message, in the log's order: those of iopub, shell and stdin whose parent is the
    /// request, also after `idle`, and the clients' `input_reply`s. Other messages and channels change nothing.
    ///
    /// An `input_reply` answers the open [`input_request`](Self::input_request), whose ever it is, unless its parent is
    /// another message: JupyterLab's has the `input_request` for a parent, other clients' have none or the request.
    pub fn apply(&mut self, channel: Channel, message: &WireMessage) {
        let text = content::text(message.content());
        if channel == Channel::Iopub && content::is_stream(message.header()) {
            return self.written(&text);
        }
        let Ok(header) = message.header_ref() else { return };
        let text = content::finite(&text);
        match (channel, &*header.msg_type) {
            (Channel::Iopub, "stream") => self.written(&text),
            (Channel::Iopub, "display_data") => self.display(&text),
            (Channel::Iopub, "update_display_data") => {
                self.update(&text);
            }
            (Channel::Iopub, "execute_result") => self.result(&text),
            (Channel::Iopub, "error") => {
                if let Some((ename, evalue, traceback)) = content::error(&text) {
                    self.clear_if_pending();
                    self.list.other(Item::Error {
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
                // One that waits goes on waiting.
                Some(false) => self.list.clear(),
                None => {}
            },
            (Channel::Iopub, "execute_input") => self.count(&text),
            (Channel::Shell, "execute_reply") => {
                self.count(&text);
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

    /// Takes the content of another execution's `display_data`, `update_display_data` or `execute_result`: what it
    /// shows is shown by all outputs with its `display_id`, in whichever cell. Returns whether there is one here.
    pub fn update_display(&mut self, content: &[u8]) -> bool {
        self.update(&content::finite(&content::text(content)))
    }

    /// The outputs, as a notebook holds them.
    #[must_use]
    pub fn outputs(&self) -> Vec<Output> {
        self.each_output().collect()
    }

    /// The same, one after the other: each is copied when it is asked for.
    pub fn each_output(&self) -> impl Iterator<Item = Output> {
        let (head, tail) = self.list.parts();
        let marker = self.marker().and_then(|marker| self.list.output(&marker));
        let output = |item| self.list.output(item);
        head.filter_map(output).chain(marker).chain(tail.filter_map(output))
    }

    /// How many bytes of text and data the outputs have, and some for each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.list.size()
    }

    /// The `display_id`s of the outputs: an update of another one changes nothing here. In no order.
    #[must_use]
    pub fn display_ids(&self) -> Vec<Arc<str>> {
        self.list.display_ids()
    }

    /// The kernel's execution counter, once it has said it.
    #[must_use]
    pub fn execution_count(&self) -> Option<u64> {
        self.execution_count
    }

    /// The `input_request` that nobody has answered, as the kernel sent it.
    ///
    /// It stays open when outputs, the reply or `idle` come, which is so where the kernel was interrupted: whether it
    /// still can be answered is the caller's to say.
    #[must_use]
    pub fn input_request(&self) -> Option<&WireMessage> {
        self.input_request.as_ref()
    }

    /// Whether the next output replaces those there are (`clear_output` with `wait`).
    #[must_use]
    pub fn clear_pending(&self) -> bool {
        self.clear_pending
    }

    /// Whether outputs are left out, for there were more than [`FoldLimits::max_bytes`].
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.list.omitted().is_some()
    }

    /// How many bytes of outputs are left out.
    #[must_use]
    pub fn omitted_bytes(&self) -> u64 {
        self.list.omitted().map_or(0, |omitted| omitted.bytes)
    }

    fn written(&mut self, text: &str) {
        let mut room = std::mem::take(&mut self.room);
        if let Some((name, written)) = content::stream(text, &mut room) {
            self.stream(&name, &written);
        }
        if room.capacity() <= MOST_ROOM {
            self.room = room;
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
            self.list.other(Item::Result {
                execution_count,
                bundle: display.bundle,
            });
        }
    }

    fn count(&mut self, text: &str) {
        self.execution_count = content::execution_count(text).or(self.execution_count);
    }

    /// JupyterLab keeps the question and its answer as text of a stream of their own.
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

    /// Stands where outputs are left out.
    fn marker(&self) -> Option<Item> {
        let omitted = self.list.omitted()?;
        let outputs = match omitted.outputs {
            0 => String::new(),
            1 => ", a whole output among them,".to_owned(),
            outputs => format!(", {outputs} whole outputs among them,"),
        };
        let text = format!(
            "[{} bytes of output{outputs} are left out here; the kernel's log has all of it]",
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

/// Whether this `input_reply` can be the answer to this `input_request`: unless its parent is another message.
pub(crate) fn answers(reply: &WireMessage, request: &WireMessage) -> bool {
    let Ok(parent) = reply.parent_ref() else { return true };
    let is = |header: Result<HeaderRef<'_>, _>| header.is_ok_and(|header| header.msg_id == parent.msg_id);
    parent.msg_id.is_empty() || is(request.header_ref()) || is(request.parent_ref())
}
