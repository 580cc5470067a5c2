use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, json};

use crate::content::CommInfoReply;

/// Number of open comms at which a client cannot open another one. The kernel can exceed it.
const MAX_COMMS: usize = 10_000;

/// Target names of the open comms, by comm id.
#[derive(Default)]
pub(super) struct Comms(Mutex<BTreeMap<String, String>>);

impl Comms {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a client may open another comm.
    pub(super) fn has_room(&self) -> bool {
        self.lock().len() < MAX_COMMS
    }

    pub(super) fn add(&self, comm_id: &str, target: &str) {
        self.lock().insert(comm_id.to_owned(), target.to_owned());
    }

    pub(super) fn remove(&self, comm_id: &str) {
        self.lock().remove(comm_id);
    }

    /// Returns the open comms of `target`, or all open comms without one.
    pub(super) fn info(&self, target: Option<&str>) -> CommInfoReply {
        let comms = self.lock();
        let of_target = comms
            .iter()
            .filter(|(_, name)| target.is_none_or(|wanted| wanted == *name));
        CommInfoReply {
            comms: of_target
                .map(|(comm_id, target)| (comm_id.clone(), json!({ "target_name": target })))
                .collect::<Map<_, _>>(),
            ..CommInfoReply::default()
        }
    }
}
