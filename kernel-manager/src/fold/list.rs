//! A bounded list of outputs.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::output::Output;
use super::terminal::StreamText;

/// Fixed cost of an output, in bytes.
const OVERHEAD: usize = 128;

/// The representations of an output, as the kernel sent them.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    pub(super) data: Arc<RawValue>,
    pub(super) metadata: Arc<RawValue>,
}

impl Bundle {
    fn size(&self) -> usize {
        self.data.get().len() + self.metadata.get().len()
    }
}

/// The name of a stream: almost always one of two names, which need no allocation.
pub(super) type StreamName = Cow<'static, str>;

fn stream_name(name: &str) -> StreamName {
    match name {
        "stdout" => Cow::Borrowed("stdout"),
        "stderr" => Cow::Borrowed("stderr"),
        other => Cow::Owned(other.to_owned()),
    }
}

#[derive(Debug)]
pub(super) enum Item {
    Stream {
        name: StreamName,
        text: StreamText,
    },
    Display(Bundle),
    /// A display with a `display_id`. Its content is stored by id, because all outputs with one id show the same.
    Named(Arc<str>),
    Result {
        execution_count: Option<u64>,
        bundle: Bundle,
    },
    Error {
        ename: String,
        evalue: String,
        traceback: Vec<String>,
    },
}

/// The content of all displays with one `display_id`.
#[derive(Debug)]
struct Shown {
    bundle: Bundle,
    /// The number of these displays.
    times: usize,
}

/// The amount of output that was removed between head and tail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Omitted {
    pub(super) bytes: u64,
    pub(super) outputs: u64,
}

/// The outputs of a cell. Beyond `max` bytes, outputs in the middle are removed: half of the limit is for the first
/// ones and the rest for the last.
#[derive(Debug)]
pub(super) struct List {
    max: usize,
    size: usize,
    /// Empty until outputs are removed.
    head: Vec<Item>,
    omitted: Option<Omitted>,
    tail: VecDeque<Item>,
    /// The displays that have an id, by `display_id`.
    shown: HashMap<Arc<str>, Shown>,
    /// The name of the stream that further text is joined to; empty if there is none.
    joining: String,
}

impl List {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            size: 0,
            head: Vec::new(),
            omitted: None,
            tail: VecDeque::new(),
            shown: HashMap::new(),
            joining: String::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max);
    }

    /// Makes further text start a new output.
    pub(super) fn stop_joining(&mut self) {
        self.joining.clear();
    }

    /// The size that counts towards the limit.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn omitted(&self) -> Option<Omitted> {
        self.omitted
    }

    pub(super) fn display_ids(&self) -> Vec<Arc<str>> {
        self.shown.keys().cloned().collect()
    }

    /// Writes to the last output if that is of the same stream, and to a new output otherwise.
    pub(super) fn stream(&mut self, name: &str, write: impl FnOnce(&mut StreamText)) {
        if self.joining == name {
            match self.tail.back_mut() {
                Some(Item::Stream { text, .. }) => {
                    let before = text.size();
                    write(text);
                    let after = text.size();
                    self.size = self.size - before + after;
                    return self.keep_in_bounds();
                }
                // Happens only for an empty name, for which JupyterLab fails and shows nothing.
                Some(_) => return,
                None => {}
            }
        }
        let mut text = StreamText::default();
        write(&mut text);
        name.clone_into(&mut self.joining);
        let name = stream_name(name);
        self.push(Item::Stream { name, text });
    }

    pub(super) fn display(&mut self, id: Option<&str>, bundle: Bundle) {
        self.stop_joining();
        let Some(id) = id else {
            return self.push(Item::Display(bundle));
        };
        let id: Arc<str> = match self.shown.get_key_value(id) {
            Some((id, _)) => Arc::clone(id),
            None => Arc::from(id),
        };
        self.shown
            .entry(Arc::clone(&id))
            .or_insert(Shown { bundle, times: 0 })
            .times += 1;
        self.push(Item::Named(id));
    }

    /// Updates all outputs with this id; returns whether there are any.
    pub(super) fn update(&mut self, id: &str, bundle: &Bundle) -> bool {
        let Some(shown) = self.shown.get_mut(id) else {
            return false;
        };
        self.size = self.size - shown.times * shown.bundle.size() + shown.times * bundle.size();
        shown.bundle = bundle.clone();
        self.keep_in_bounds();
        true
    }

    pub(super) fn add(&mut self, item: Item) {
        self.stop_joining();
        self.push(item);
    }

    fn push(&mut self, item: Item) {
        self.size += self.cost(&item);
        self.tail.push_back(item);
        self.keep_in_bounds();
    }

    fn cost(&self, item: &Item) -> usize {
        OVERHEAD
            + match item {
                Item::Stream { name, text } => name.len() + text.size(),
                Item::Display(bundle) | Item::Result { bundle, .. } => bundle.size(),
                Item::Named(id) => id.len() + self.shown.get(id).map_or(0, |shown| shown.bundle.size()),
                Item::Error {
                    ename,
                    evalue,
                    traceback,
                } => ename.len() + evalue.len() + traceback.iter().map(|line| line.len() + 24).sum::<usize>(),
            }
    }

    fn keep_in_bounds(&mut self) {
        if self.size > self.max {
            self.leave_out();
        }
    }

    fn leave_out(&mut self) {
        if self.omitted.is_none() {
            self.omitted = Some(Omitted::default());
            self.fix_head();
        }
        // Remove more than necessary, so that the next message does not trigger this again.
        let target = self.max - self.max / 8;
        while self.size > target {
            let excess = self.size - target;
            let last = self.tail.len() == 1;
            let item = match self.tail.front_mut() {
                Some(Item::Stream { text, .. }) if text.size() > 0 && (last || text.size() > excess) => {
                    let before = text.size();
                    let cut = text.cut_front(excess);
                    self.size -= before - text.size();
                    self.count_omitted(cut, 0);
                    continue;
                }
                // Keep the stream although it is empty, because later text may be joined to it.
                Some(Item::Stream { .. }) if last => self.head.pop(),
                _ => self.tail.pop_front().or_else(|| self.head.pop()),
            };
            match item {
                Some(item) => self.forget(item),
                None => return,
            }
        }
    }

    /// Moves outputs to the head, up to half of the limit.
    fn fix_head(&mut self) {
        let mut room = self.max / 2;
        while let Some(item) = self.tail.front() {
            let cost = self.cost(item);
            if cost > room {
                break;
            }
            room -= cost;
            self.head.extend(self.tail.pop_front());
        }
        if let Some(Item::Stream { name, text }) = self.tail.front_mut()
            && let Some(room) = room.checked_sub(OVERHEAD + name.len())
        {
            let (name, text) = (name.clone(), text.split_front(room));
            if text.size() > 0 {
                self.size += OVERHEAD + name.len();
                self.head.push(Item::Stream { name, text });
            }
        }
    }

    fn forget(&mut self, item: Item) {
        let cost = self.cost(&item);
        self.size -= cost;
        self.count_omitted(cost - OVERHEAD, 1);
        if let Item::Named(id) = item
            && let Some(shown) = self.shown.get_mut(&id)
        {
            shown.times -= 1;
            if shown.times == 0 {
                self.shown.remove(&id);
            }
        }
    }

    fn count_omitted(&mut self, bytes: usize, outputs: u64) {
        let omitted = self.omitted.get_or_insert_default();
        omitted.bytes += bytes as u64;
        omitted.outputs += outputs;
    }

    /// The outputs before and after the removed ones.
    pub(super) fn parts(&self) -> (impl Iterator<Item = &Item>, impl Iterator<Item = &Item>) {
        (self.head.iter(), self.tail.iter())
    }

    pub(super) fn bundle_of(&self, id: &str) -> Option<&Bundle> {
        self.shown.get(id).map(|shown| &shown.bundle)
    }

    pub(super) fn output(&self, item: &Item) -> Option<Output> {
        Some(match item {
            Item::Stream { name, text } => Output::Stream {
                name: name.clone().into_owned(),
                text: text.shown(),
            },
            Item::Display(bundle) => display(bundle, None),
            Item::Named(id) => display(self.bundle_of(id)?, Some(Arc::clone(id))),
            Item::Result {
                execution_count,
                bundle,
            } => Output::ExecuteResult {
                execution_count: *execution_count,
                data: Arc::clone(&bundle.data),
                metadata: Arc::clone(&bundle.metadata),
            },
            Item::Error {
                ename,
                evalue,
                traceback,
            } => Output::Error {
                ename: ename.clone(),
                evalue: evalue.clone(),
                traceback: traceback.clone(),
            },
        })
    }
}

fn display(bundle: &Bundle, display_id: Option<Arc<str>>) -> Output {
    Output::DisplayData {
        data: Arc::clone(&bundle.data),
        metadata: Arc::clone(&bundle.metadata),
        display_id,
    }
}
