use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::index_keys as keys;
use crate::log::{IndexUpdate, Log, Seq, StoreError};

/// How many sessions that are not attached a kernel remembers. Of more the one that left first is forgotten: should it
/// come back, it starts at the end of the log.
const MAX_DETACHED: usize = 256;
/// For how long what was acknowledged may not have reached the client: a proxy that answers for it notices only after
/// such a time that nobody is behind it any more. jupyter_server takes 90 s.
const GRACE: Duration = Duration::from_secs(120);
/// How finely positions are remembered within [`GRACE`].
const GRACE_STEP: Duration = Duration::from_secs(5);
/// How often at the most a position is stored while it moves.
const STORE_EVERY: Duration = Duration::from_secs(1);

/// Where each client's session stands in a kernel's log, attached or not. Positions are in the log's index too, so that a
/// session can come back to another process.
pub(crate) struct Sessions {
    known: Mutex<Known>,
    attached: watch::Sender<usize>,
    log: Log,
}

#[derive(Default)]
struct Known {
    by_key: HashMap<Arc<str>, Session>,
    /// Counts attachments and detachments: tells one attachment of a session from the next, and who left first.
    clock: u64,
}

struct Session {
    /// How far each of its attachments is. Of several the client hears only one.
    attachments: BTreeMap<u64, Progress>,
    /// The attachment that the client hears, or heard: the newest one over which it has sent something, or that was alone.
    heard: u64,
    /// How far that one was when it left.
    left: Option<Progress>,
    /// The position in the index, and since when.
    stored: Option<(Position, Instant)>,
    /// Whether the client remembers its place in the log, so that nothing has to be remembered of it here.
    knows_its_place: bool,
    /// The clock when it was attached or detached.
    changed: u64,
    /// Tells the newest attachment's number, so that an older one sees that it is not meant any more.
    current: watch::Sender<u64>,
}

/// How far an attachment is.
#[derive(Clone)]
struct Progress {
    position: Position,
    /// What was acknowledged when, within [`GRACE`], the oldest first.
    recent: VecDeque<(Instant, Seq)>,
}

/// What a session has of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The last entry that the next hop towards the client has acknowledged.
    pub(super) acknowledged: Seq,
    /// The last entry that the client surely has: it was acknowledged [`GRACE`] before the last sign of life.
    pub(super) sure: Seq,
}

/// Who attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// A client that has one connection, and this is it.
    Alone,
    /// Somebody who may have several connections for one client.
    Shared,
    /// A client that remembers its place in the log.
    KnowsItsPlace,
}

/// What an attachment gets to know.
pub(super) struct Joined {
    pub(super) attachment: u64,
    /// What the session has; `None` where it is new.
    pub(super) position: Option<Position>,
    pub(super) current: watch::Receiver<u64>,
}

impl Progress {
    fn at(position: Position) -> Self {
        Self {
            position,
            recent: VecDeque::from([(Instant::now(), position.sure)]),
        }
    }

    fn acknowledge(&mut self, seq: Seq) {
        let now = Instant::now();
        self.position.acknowledged = self.position.acknowledged.max(seq);
        if self.recent.back().is_none_or(|(time, _)| now - *time >= GRACE_STEP) {
            self.recent.push_back((now, self.position.acknowledged));
        }
        while let Some((time, seq)) = self.recent.front()
            && now - *time >= GRACE
        {
            self.position.sure = self.position.sure.max(*seq);
            self.recent.pop_front();
        }
    }
}

impl Session {
    fn new(left: Option<Position>) -> Self {
        Self {
            attachments: BTreeMap::new(),
            heard: 0,
            left: left.map(Progress::at),
            stored: None,
            knows_its_place: false,
            changed: 0,
            current: watch::Sender::new(0),
        }
    }

    fn is_away(&self) -> bool {
        self.attachments.is_empty()
    }

    /// How far the client is; `None` where it has never been attached.
    fn progress(&self) -> Option<&Progress> {
        self.attachments.get(&self.heard).or(self.left.as_ref())
    }

    /// The index's update, where the position is to be stored now.
    fn store(&mut self, key: &str, at_once: bool) -> Option<IndexUpdate> {
        let position = self.progress()?.position;
        let due = match &self.stored {
            None => true,
            Some((stored, since)) => *stored != position && (at_once || since.elapsed() >= STORE_EVERY),
        };
        if !due {
            return None;
        }
        self.stored = Some((position, Instant::now()));
        // Two numbers: they can be written.
        let json = serde_json::to_vec(&position).ok()?;
        Some(IndexUpdate::put(keys::session(key), json))
    }
}

impl Sessions {
    /// The sessions that the log's index knows, all of them away.
    pub(crate) async fn load(log: Log) -> Result<Self, StoreError> {
        let (start, end) = keys::SESSIONS;
        let mut known = Known::default();
        for (key, json) in log.index_scan(start, end, 2 * MAX_DETACHED, false).await? {
            if let Some(key) = keys::text_of(&key)
                && let Ok(position) = serde_json::from_slice::<Position>(&json)
            {
                known.by_key.insert(key.into(), Session::new(Some(position)));
            }
        }
        Ok(Self {
            known: Mutex::new(known),
            attached: watch::Sender::new(0),
            log,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sessions are attached: the number now, then each change.
    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        self.attached.subscribe()
    }

    /// Attaches a session; older attachments of the same one are told, and may stay. A new one reads on after `head`.
    pub(super) fn join(&self, key: &Arc<str>, head: Seq, joining: Joining) -> Joined {
        let mut known = self.lock();
        known.clock += 1;
        let attachment = known.clock;
        // Of what it asked earlier, if it did and was forgotten, nothing is sure.
        let new = Position {
            acknowledged: head,
            sure: Seq::START,
        };
        let session = known.by_key.entry(key.clone()).or_insert_with(|| Session::new(None));
        let progress = session.progress().cloned();
        let position = progress.as_ref().map(|progress| progress.position);
        if session.is_away() || joining != Joining::Shared {
            session.heard = attachment;
        }
        session
            .attachments
            .insert(attachment, progress.unwrap_or_else(|| Progress::at(new)));
        session.knows_its_place = joining == Joining::KnowsItsPlace;
        session.changed = attachment;
        session.current.send_replace(attachment);
        let current = session.current.subscribe();
        self.count(&known);
        Joined {
            attachment,
            position,
            current,
        }
    }

    /// Waits until the attachment that the session's client hears, if there is one, is gone.
    pub(crate) async fn left(&self, key: &str) {
        let mut changes = self.attached.subscribe();
        while self.is_heard(key) {
            // The sender is `self`, so waiting cannot fail.
            let _ = changes.changed().await;
        }
    }

    fn is_heard(&self, key: &str) -> bool {
        let known = self.lock();
        let session = known.by_key.get(key);
        session.is_some_and(|session| session.attachments.contains_key(&session.heard))
    }

    pub(super) fn acknowledge(&self, key: &str, attachment: u64, seq: Seq) {
        self.advance(key, attachment, false, |progress| progress.acknowledge(seq));
    }

    /// The client has acted on entry `seq`: it has everything up to there, whoever is between.
    pub(super) fn has_seen(&self, key: &str, attachment: u64, seq: Seq) {
        self.advance(key, attachment, true, |progress| {
            progress.acknowledge(seq);
            progress.position.sure = progress.position.sure.max(seq);
        });
    }

    fn advance(&self, key: &str, attachment: u64, store_at_once: bool, advance: impl FnOnce(&mut Progress)) {
        let mut known = self.lock();
        if let Some(session) = known.by_key.get_mut(key)
            && !session.knows_its_place
            && let Some(progress) = session.attachments.get_mut(&attachment)
        {
            advance(progress);
            if let Some(update) = session.store(key, store_at_once) {
                self.log.update_index([update]);
            }
        }
    }

    /// The client has sent something over this attachment, so this is the one that it hears.
    pub(super) fn spoke(&self, key: &str, attachment: u64) {
        let mut known = self.lock();
        if let Some(session) = known.by_key.get_mut(key)
            && session.attachments.contains_key(&attachment)
        {
            // What comes late over an older one says nothing.
            session.heard = session.heard.max(attachment);
        }
    }

    pub(super) fn leave(&self, key: &str, attachment: u64) {
        let mut known = self.lock();
        known.clock += 1;
        let now = known.clock;
        if let Some(session) = known.by_key.get_mut(key)
            && let Some(progress) = session.attachments.remove(&attachment)
        {
            session.changed = now;
            if session.heard == attachment {
                session.left = Some(progress);
            }
            if session.knows_its_place {
                if session.is_away() {
                    known.by_key.remove(key);
                }
            } else if let Some(update) = session.store(key, true) {
                self.log.update_index([update]);
            }
        }
        let detached = known.by_key.values().filter(|session| session.is_away());
        if detached.count() > MAX_DETACHED {
            let oldest = known
                .by_key
                .iter()
                .filter(|(_, session)| session.is_away())
                .min_by_key(|(_, session)| session.changed)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                known.by_key.remove(&oldest);
                self.log.update_index([IndexUpdate::remove(keys::session(&oldest))]);
            }
        }
        self.count(&known);
    }

    fn count(&self, known: &Known) {
        let attached = known.by_key.values().filter(|session| !session.is_away());
        self.attached.send_replace(attached.count());
    }
}
