//! The events of one viewer of a live page.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::pages::{Page, Snapshot};
use crate::Gateway;
use crate::model::timestamp;
use crate::routes::write_event;
use crate::shares::Share;

/// Idle time before a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The most bytes that are passed to the connection at a time.
const PIECE: usize = 64 << 10;

/// Formats the events of one viewer, one at a time. So a slow viewer occupies memory only for one event and for the
/// page, which all viewers share.
pub(super) struct Viewer {
    gateway: Arc<Gateway>,
    share: Share,
    changes: watch::Receiver<Arc<Snapshot>>,
    revocations: watch::Receiver<u64>,
    /// The snapshot that is being sent.
    snapshot: Arc<Snapshot>,
    /// The index of the first cell of `snapshot` that may have to be sent.
    next_cell: usize,
    /// The versions of the cells that were sent.
    sent: HashMap<Arc<str>, u64>,
    order: Vec<Arc<str>>,
    state: Arc<str>,
    /// Small events that come before the cells.
    ready: VecDeque<Bytes>,
    is_over: bool,
    _page: Arc<Page>,
    _places: [OwnedSemaphorePermit; 2],
}

impl Viewer {
    pub(super) fn new(gateway: Arc<Gateway>, share: Share, page: Arc<Page>, places: [OwnedSemaphorePermit; 2]) -> Self {
        Self {
            changes: page.snapshot(),
            revocations: gateway.shares.revocations(),
            gateway,
            share,
            snapshot: Arc::default(),
            next_cell: 0,
            sent: HashMap::new(),
            order: Vec::new(),
            state: Arc::default(),
            ready: VecDeque::from([Bytes::from_static(b"retry: 2000\n\n")]),
            is_over: false,
            _page: page,
            _places: places,
        }
    }

    /// Sends the events until the end, or until the viewer is gone or has read nothing for the gateway's write timeout.
    pub(super) async fn run(mut self, to: mpsc::Sender<Bytes>) {
        let deadline = self.gateway.options().write_deadline;
        loop {
            let event = tokio::select! {
                event = self.next() => event,
                () = to.closed() => None,
            };
            let Some(mut event) = event else { return };
            while !event.is_empty() {
                let piece = event.split_to(event.len().min(PIECE));
                if !matches!(timeout(deadline, to.send(piece)).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.gateway.shares.is_valid(self.share.id) {
                return (!std::mem::replace(&mut self.is_over, true)).then(|| event("end", r#"{"reason":"link"}"#));
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if let Some(event) = self.next_cell() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            if self.snapshot.has_ended {
                self.is_over = true;
                return Some(event("end", r#"{"reason":"kernel"}"#));
            }
            let expires = (self.share.expires - chrono::Utc::now()).to_std().unwrap_or_default();
            let gateway = self.gateway.clone();
            tokio::select! {
                biased;
                // The viewer's page reconnects to the next gateway.
                () = gateway.closing() => return None,
                _ = self.revocations.changed() => {}
                () = sleep(expires) => {}
                changed = timeout(KEEP_ALIVE, self.changes.changed()) => match changed {
                    Err(_) => return Some(Bytes::from_static(b": keep-alive\n\n")),
                    // The viewer's page reconnects.
                    Ok(Err(_)) => return None,
                    Ok(Ok(())) => self.take_changes(),
                },
            }
        }
    }

    fn take_changes(&mut self) {
        self.snapshot = self.changes.borrow_and_update().clone();
        self.next_cell = 0;
        if self.snapshot.state != self.state {
            self.state = self.snapshot.state.clone();
            let path = &self.share.path;
            let expires = timestamp(self.share.expires);
            let facts = json!({"path": path, "expires": expires}).to_string();
            // Both texts are JSON objects.
            let (facts, state) = (&facts[..facts.len() - 1], self.state.get(1..).unwrap_or("}"));
            self.ready.push_back(event("state", &format!("{facts},{state}")));
        }
        let order: Vec<Arc<str>> = self.snapshot.cells.iter().map(|cell| cell.id.clone()).collect();
        if order != self.order {
            let ids: Vec<&str> = order.iter().map(|id| &**id).collect();
            self.ready.push_back(event("order", &json!(ids).to_string()));
            self.sent.retain(|id, _| order.contains(id));
            self.order = order;
        }
    }

    fn next_cell(&mut self) -> Option<Bytes> {
        while let Some(cell) = self.snapshot.cells.get(self.next_cell) {
            self.next_cell += 1;
            if self.sent.insert(cell.id.clone(), cell.version) != Some(cell.version) {
                return Some(event("cell", &cell.json));
            }
        }
        None
    }
}

/// A server-sent event.
pub(super) fn event(name: &str, json: &str) -> Bytes {
    let mut event = BytesMut::with_capacity(json.len() + 64);
    write_event(&mut event, None, name, json.as_bytes());
    event.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_in_json_do_not_end_an_event() {
        let event = event("cell", "{\r\n \"a\":\n\n1\r}");
        let text = std::str::from_utf8(&event).unwrap();
        let (name, data) = text.strip_suffix("\n\n").unwrap().split_once('\n').unwrap();
        assert_eq!(name, "event: cell");
        let lines = data.split('\n').map(|line| line.strip_prefix("data: ").unwrap());
        let joined: Vec<_> = lines.collect();
        assert!(!joined.iter().any(|line| line.contains('\r')));
        let json: serde_json::Value = serde_json::from_str(&joined.join("\n")).unwrap();
        assert_eq!(json, json!({"a": 1}));
    }
}
