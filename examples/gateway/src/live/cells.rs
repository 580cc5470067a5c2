//! The cells of a live page, folded from the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::content::InputRequest;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Entry, Origin, ReadError, Seq};
use kernel_manager::fold::{Fold, FoldLimits, Output};
use kernel_manager::{ExecutionFilter, ExecutionRecord, Executions, is_follow_request};
use serde::{Deserialize, Serialize};

use crate::model::timestamp;

/// The most cells of a page: the newest.
const MAX_CELLS: usize = 100;
/// The most bytes of outputs of a cell. Beyond that, head and tail are kept.
const MAX_CELL_BYTES: usize = 1 << 20;
/// The most bytes of code of a cell. Beyond that, only its start is shown.
const MAX_CODE: usize = 64 << 10;
/// The most bytes of outputs of all cells. Beyond that, the outputs of the oldest ended cells are removed.
const MAX_BYTES: usize = 16 << 20;

#[derive(Clone)]
pub(super) struct ShownCell {
    pub(super) id: Arc<str>,
    pub(super) version: u64,
    pub(super) json: Arc<str>,
}

/// The content of an `execute_request`, as far as it is shown.
#[derive(Deserialize)]
struct Request {
    code: String,
    #[serde(default)]
    silent: bool,
}

struct Cell {
    msg_id: Arc<str>,
    cell_id: Option<String>,
    code: String,
    status: String,
    execution_count: Option<u64>,
    started: Option<DateTime<Utc>>,
    ended: Option<DateTime<Utc>>,
    fold: Fold,
    /// The last entry that the fold includes.
    until: Seq,
    is_dropped: bool,
    version: u64,
    shown: Option<Arc<str>>,
}

#[derive(Serialize)]
struct CellModel<'a> {
    id: &'a str,
    code: &'a str,
    status: &'a str,
    execution_count: Option<u64>,
    started: Option<String>,
    ended: Option<String>,
    /// The prompt of the open input request.
    question: Option<String>,
    outputs: Vec<Output>,
    /// Whether its outputs are left out because the page would be too large.
    dropped: bool,
}

pub(super) struct Cells {
    /// By the entry of their request.
    by_request: BTreeMap<Seq, Cell>,
    by_msg_id: HashMap<Arc<str>, Seq>,
    /// The entry after which to read.
    pub(super) read_from: Seq,
    /// The previous message's parent header, and the request of its cell. In a flood, the next message has the same
    /// parent.
    last_parent: (Bytes, Option<Seq>),
}

impl Cells {
    /// The newest cells that were requested since this time. A log may also have cells of an earlier kernel.
    pub(super) async fn load(executions: &Executions, since: DateTime<Utc>) -> Result<Self, ReadError> {
        let mut cells = Self {
            by_request: BTreeMap::new(),
            by_msg_id: HashMap::new(),
            read_from: executions.log().head(),
            last_parent: (Bytes::new(), None),
        };
        let filter = ExecutionFilter {
            latest_of_cells: true,
            since: Some(since),
            ..ExecutionFilter::default()
        };
        let page = executions.list(&filter, None, MAX_CELLS).await?;
        for record in page.executions {
            let Some(request) = executions.request(&record).await? else {
                continue;
            };
            let limits = FoldLimits::max_bytes(MAX_CELL_BYTES);
            let outputs = executions.outputs_within(&record, limits).await?;
            cells.add_known(&record, &request, outputs.fold, outputs.cursor.seq);
        }
        cells.forget_excess();
        Ok(cells)
    }

    fn add_known(&mut self, record: &ExecutionRecord, request: &WireMessage, fold: Fold, until: Seq) {
        let Some(code) = shown_code(request) else { return };
        self.insert(
            record.request,
            Cell {
                msg_id: record.msg_id().into(),
                cell_id: record.cell_id.clone(),
                code,
                status: record.status.as_str().to_owned(),
                execution_count: fold.execution_count().or(record.execution_count),
                started: record.started,
                ended: record.ended,
                fold,
                until,
                is_dropped: false,
                version: 0,
                shown: None,
            },
        );
    }

    fn insert(&mut self, request: Seq, cell: Cell) {
        if let Some(cell_id) = &cell.cell_id {
            let before = self
                .by_request
                .iter()
                .find(|(_, before)| before.cell_id.as_ref() == Some(cell_id));
            if let Some(before) = before.map(|(request, _)| *request) {
                self.remove(before);
            }
        }
        self.by_msg_id.insert(cell.msg_id.clone(), request);
        self.by_request.insert(request, cell);
        self.last_parent = (Bytes::new(), None);
        while self.by_request.len() > MAX_CELLS
            && let Some(oldest) = self.by_request.keys().next().copied()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, request: Seq) {
        if let Some(cell) = self.by_request.remove(&request) {
            self.by_msg_id.remove(&cell.msg_id);
        }
        self.last_parent = (Bytes::new(), None);
    }

    pub(super) fn apply(&mut self, entry: &Entry) {
        let message = entry.message();
        match (entry.origin(), entry.channel()) {
            (Origin::Client, Channel::Shell) => self.on_request(entry, &message),
            // The parent of an answer is the input request, not the execute request.
            (Origin::Client, Channel::Stdin) => {
                let asked = |cell: &&mut Cell| cell.fold.input_request().is_some() && entry.seq() > cell.until;
                for cell in self.by_request.values_mut().filter(asked) {
                    cell.fold.apply(Channel::Stdin, &message);
                    cell.change();
                }
            }
            (Origin::Client, _) | (_, Channel::Control) => {}
            _ => self.on_kernel_message(entry, &message),
        }
    }

    fn on_request(&mut self, entry: &Entry, message: &WireMessage) {
        let Ok(header) = message.header_ref() else { return };
        if header.msg_type != "execute_request" || is_follow_request(message) {
            return;
        }
        let msg_id: Arc<str> = (*header.msg_id).into();
        if self.by_msg_id.contains_key(&msg_id) {
            return;
        }
        let Some(code) = shown_code(message) else { return };
        let cell = Cell {
            msg_id,
            cell_id: cell_id(message),
            code,
            status: "queued".to_owned(),
            execution_count: None,
            started: None,
            ended: None,
            fold: Fold::new(FoldLimits::max_bytes(MAX_CELL_BYTES)),
            until: entry.seq(),
            is_dropped: false,
            version: 0,
            shown: None,
        };
        self.insert(entry.seq(), cell);
    }

    fn on_kernel_message(&mut self, entry: &Entry, message: &WireMessage) {
        if self.last_parent.0 != message.parent_header() {
            let parent = message.parent_ref().ok();
            let request = parent.and_then(|parent| self.by_msg_id.get(&*parent.msg_id).copied());
            self.last_parent = (Bytes::copy_from_slice(message.parent_header()), request);
        }
        let own = self.last_parent.1;
        let Ok(header) = message.header_ref() else { return };
        if header.msg_type == "update_display_data" {
            for (request, cell) in &mut self.by_request {
                if Some(*request) != own && cell.fold.update_display(message.content()) {
                    cell.change();
                }
            }
        }
        let cell = own.and_then(|request| self.by_request.get_mut(&request));
        let Some(cell) = cell.filter(|cell| entry.seq() > cell.until) else {
            return;
        };
        cell.fold.apply(entry.channel(), message);
        cell.change();
        match &*header.msg_type {
            "status" => {
                let state = text_of(message, "execution_state");
                if state.as_deref() == Some("busy") && cell.started.is_none() {
                    cell.started = Some(entry.time());
                    cell.status = "running".to_owned();
                } else if state.as_deref() == Some("idle") {
                    cell.ended = Some(entry.time());
                }
            }
            "execute_reply" => {
                cell.status = text_of(message, "status").unwrap_or_else(|| "ok".to_owned());
                cell.execution_count = cell.fold.execution_count();
            }
            "execute_input" => cell.execution_count = cell.fold.execution_count(),
            _ => {}
        }
    }

    /// Removes the outputs of the oldest ended cells while the page is too large.
    fn forget_excess(&mut self) {
        let mut bytes: usize = self.by_request.values().map(|cell| cell.fold.bytes()).sum();
        for cell in self.by_request.values_mut() {
            if bytes <= MAX_BYTES {
                return;
            }
            if cell.ended.is_some() && !cell.is_dropped {
                bytes -= cell.fold.bytes();
                cell.fold = Fold::new(FoldLimits::max_bytes(FoldLimits::MIN_BYTES));
                cell.is_dropped = true;
                cell.change();
            }
        }
    }

    /// The cells, and the bytes of those that have changed since the last call.
    pub(super) fn shown(&mut self) -> (Vec<ShownCell>, usize) {
        self.forget_excess();
        let mut changed_bytes = 0;
        let cells = self.by_request.values_mut().map(|cell| {
            let is_new = cell.shown.is_none();
            let json = cell.json();
            changed_bytes += if is_new { json.len() } else { 0 };
            ShownCell {
                id: cell.msg_id.clone(),
                version: cell.version,
                json,
            }
        });
        (cells.collect(), changed_bytes)
    }
}

impl Cell {
    fn change(&mut self) {
        if self.shown.take().is_some() {
            self.version += 1;
        }
    }

    fn json(&mut self) -> Arc<str> {
        if let Some(json) = &self.shown {
            return json.clone();
        }
        let question = self.fold.input_request().filter(|_| self.ended.is_none());
        let question = question.and_then(|question| serde_json::from_slice::<InputRequest>(question.content()).ok());
        let model = CellModel {
            id: &self.msg_id,
            code: &self.code,
            status: &self.status,
            execution_count: self.execution_count,
            started: self.started.map(timestamp),
            ended: self.ended.map(timestamp),
            question: question.map(|question| question.prompt),
            outputs: self.fold.outputs(),
            dropped: self.is_dropped,
        };
        // Texts, numbers and valid JSON always serialize.
        let json: Arc<str> = serde_json::to_string(&model).unwrap_or_default().into();
        self.shown = Some(json.clone());
        json
    }
}

/// The code of a request; `None` if the request is silent, like front ends' own requests.
fn shown_code(request: &WireMessage) -> Option<String> {
    let request: Request = serde_json::from_slice(request.content()).ok()?;
    let Request { mut code, silent } = request;
    if code.len() > MAX_CODE {
        code.truncate(code.floor_char_boundary(MAX_CODE));
        code.push_str("\n…");
    }
    (!silent).then_some(code)
}

fn cell_id(request: &WireMessage) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(alias = "cell_id", rename = "cellId")]
        cell_id: Option<String>,
    }
    serde_json::from_slice::<Metadata>(request.metadata()).ok()?.cell_id
}

fn text_of(message: &WireMessage, name: &str) -> Option<String> {
    let content: serde_json::Value = serde_json::from_slice(message.content()).ok()?;
    content.get(name)?.as_str().map(str::to_owned)
}
