use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel_log::{IndexUpdate, Log, Seq, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::follow::Followed;
use super::index_keys as keys;

/// How many detached sessions are remembered per kernel. Beyond that, the session that left first is forgotten, and
/// resumes at the end of the log.
const MAX_DETACHED: usize = 256;
/// How long an acknowledgement stays provisional: a proxy may acknowledge for a client that is already gone.
/// jupyter_server takes up to 90 s to notice.
const GRACE: Duration = Duration::from_secs(120);
/// Resolution of the positions within [`GRACE`].
const GRACE_STEP: Duration = Duration::from_secs(5);
/// The most executions that are replayed again to a session that reconnects within [`GRACE`]. Beyond that, the oldest
/// is not replayed.
const MAX_REPLAYS: usize = 256;
/// Minimum interval between two writes of a moving position.
const STORE_EVERY: Duration = Duration::from_secs(1);

/// The position of every client session in a kernel's log, attached or not. The log's index stores positions too, so
/// that a session can resume in another process.
pub(crate) struct Sessions {
    known: Mutex<SessionTable>,
    attached: watch::Sender<usize>,
    log: Log,
}

#[derive(Default)]
struct SessionTable {
    by_key: HashMap<Arc<str>, Session>,
    /// Logical clock: numbers attachments, and orders sessions by when they left.
    clock: u64,
}

struct Session {
    /// The progress of each attachment. If there are several, the messages of only one reach the client.
    attachments: BTreeMap<u64, Progress>,
    /// The attachment whose messages are assumed to reach the client: the newest one over which the client sent a
    /// message. Before that, the first of several [`Joining::Shared`] attachments, or the newest other one.
    active: u64,
    /// The executions of other sessions that this session follows.
    followed: Arc<Followed>,
    /// The progress of the `active` attachment when it left.
    left: Option<Progress>,
    /// The stored position, and when it was stored.
    stored: Option<(Stored, Instant)>,
    /// Whether the client tracks its own position, so that none is stored here.
    tracks_position: bool,
    /// The clock at the last attach or detach.
    changed: u64,
    /// Announces the number of the newest attachment, which supersedes older ones that are not [`Joining::Shared`].
    current: watch::Sender<u64>,
}

/// The progress of one attachment.
#[derive(Clone)]
struct Progress {
    position: Position,
    /// Acknowledgements within [`GRACE`], oldest first.
    recent: VecDeque<(Instant, Seq)>,
    /// When an execution was last replayed on request, and the position before the oldest replayed execution. Until
    /// [`GRACE`] has passed, the client may not have received the replays.
    replayed: Option<(Instant, Seq)>,
    /// The executions that were replayed on request within [`GRACE`], oldest first. Some may no longer be in memory,
    /// only in the log's index.
    replays: VecDeque<(Instant, Arc<str>)>,
}

/// A session's record in the index.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    position: Position,
    /// The executions that were replayed on request within [`GRACE`] before the record was stored, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replays: Vec<String>,
}

/// How much of the log a session has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The last entry that the next hop towards the client acknowledged.
    pub(crate) acknowledged: Seq,
    /// The last entry that the client has for certain: the client acted on it, or it was acknowledged at least
    /// [`GRACE`] before the newest acknowledgement.
    pub(crate) sure: Seq,
}

/// How a client attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    /// With its only connection.
    Alone,
    /// With one of several connections that the session may have.
    Shared,
    /// With a position that the client tracks itself.
    TracksPosition,
}

/// The result of an attach.
pub(crate) struct Joined {
    pub(crate) attachment: u64,
    /// What the session has received; `None` if it is new.
    pub(crate) position: Option<Position>,
    pub(crate) followed: Arc<Followed>,
    /// Executions that were replayed on request within [`GRACE`] and may not have reached the client, oldest first.
    pub(crate) replays: Vec<Arc<str>>,
    pub(crate) current: watch::Receiver<u64>,
}

impl Progress {
    fn at(position: Position) -> Self {
        Self {
            position,
            recent: VecDeque::from([(Instant::now(), position.sure)]),
            replayed: None,
            replays: VecDeque::new(),
        }
    }

    fn stored(&self) -> Stored {
        let replays = self.replays.iter().map(|(_, msg_id)| msg_id.to_string());
        Stored {
            position: self.position,
            replays: replays.collect(),
        }
    }

    fn restored(Stored { position, replays }: Stored) -> Self {
        let now = Instant::now();
        let replays = replays.into_iter().map(|msg_id| (now, msg_id.into()));
        Self {
            replays: replays.collect(),
            ..Self::at(position)
        }
    }

    /// Records that the execution is replayed. Its entries come after `before`.
    fn replay(&mut self, msg_id: &str, before: Seq) {
        let now = Instant::now();
        self.replays.retain(|(_, known)| **known != *msg_id);
        self.replays.push_back((now, msg_id.into()));
        if self.replays.len() > MAX_REPLAYS {
            self.replays.pop_front();
        }
        self.lower_if_replayed(now);
        let floor = self.replayed.map_or(before, |(_, floor)| floor.min(before));
        self.replayed = Some((now, floor));
        self.lower_if_replayed(now);
    }

    /// Limits the certain position to the entry before the executions that were replayed within [`GRACE`], and forgets
    /// older replays.
    fn lower_if_replayed(&mut self, now: Instant) {
        match self.replayed {
            Some((time, floor)) if now - time < GRACE => self.position.sure = self.position.sure.min(floor),
            _ => self.replayed = None,
        }
        while self.replays.front().is_some_and(|(time, _)| now - *time >= GRACE) {
            self.replays.pop_front();
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
        self.lower_if_replayed(now);
    }
}

impl Session {
    fn new(left: Option<Stored>) -> Self {
        Self {
            attachments: BTreeMap::new(),
            active: 0,
            followed: Arc::default(),
            left: left.map(Progress::restored),
            stored: None,
            tracks_position: false,
            changed: 0,
            current: watch::Sender::new(0),
        }
    }

    fn is_away(&self) -> bool {
        self.attachments.is_empty()
    }

    /// The session's position; `None` if it never attached.
    fn progress(&self) -> Option<&Progress> {
        self.attachments.get(&self.active).or(self.left.as_ref())
    }

    /// The index update, if the position is due to be stored.
    fn store(&mut self, key: &str, at_once: bool) -> Option<IndexUpdate> {
        let progress = self.progress()?;
        if let Some((stored, since)) = &self.stored
            && !at_once
            && (stored.position == progress.position || since.elapsed() < STORE_EVERY)
        {
            return None;
        }
        let now = progress.stored();
        if self.stored.as_ref().is_some_and(|(stored, _)| *stored == now) {
            return None;
        }
        // Numbers and texts always serialize.
        let json = serde_json::to_vec(&now).ok()?;
        self.stored = Some((now, Instant::now()));
        Some(IndexUpdate::put(keys::session(key), json))
    }
}

impl Sessions {
    /// Restores the sessions of the log's index, all detached.
    pub(crate) async fn load(log: Log) -> Result<Self, StoreError> {
        let (start, end) = keys::SESSIONS;
        let mut known = SessionTable::default();
        for (key, json) in log.index_scan(start, end, 2 * MAX_DETACHED, false).await? {
            if let Some(key) = keys::text_of(&key)
                && let Ok(stored) = serde_json::from_slice::<Stored>(&json)
            {
                known.by_key.insert(key.into(), Session::new(Some(stored)));
            }
        }
        Ok(Self {
            known: Mutex::new(known),
            attached: watch::Sender::new(0),
            log,
        })
    }

    fn lock(&self) -> MutexGuard<'_, SessionTable> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of attached sessions: its value now and each change.
    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        self.attached.subscribe()
    }

    /// Attaches a session and supersedes its older attachments, except those that are [`Joining::Shared`]. A new
    /// session starts after `head`.
    pub(crate) fn join(&self, key: &Arc<str>, head: Seq, joining: Joining) -> Joined {
        let mut known = self.lock();
        known.clock += 1;
        let attachment = known.clock;
        // The session may have been forgotten, so it is not certain that it received anything.
        let new = Position {
            acknowledged: head,
            sure: Seq::START,
        };
        let session = known.by_key.entry(key.clone()).or_insert_with(|| Session::new(None));
        let mut progress = session.progress().cloned();
        if let Some(progress) = &mut progress {
            progress.lower_if_replayed(Instant::now());
        }
        let replays = progress.iter().flat_map(|progress| &progress.replays);
        let replays = replays.map(|(_, msg_id)| msg_id.clone()).collect();
        let position = progress.as_ref().map(|progress| progress.position);
        if session.is_away() || joining != Joining::Shared {
            session.active = attachment;
        }
        session
            .attachments
            .insert(attachment, progress.unwrap_or_else(|| Progress::at(new)));
        session.tracks_position = joining == Joining::TracksPosition;
        session.changed = attachment;
        session.current.send_replace(attachment);
        let (current, followed) = (session.current.subscribe(), session.followed.clone());
        self.count(&known);
        Joined {
            attachment,
            position,
            followed,
            replays,
            current,
        }
    }

    /// Waits until the active attachment, if any, has left.
    pub(crate) async fn left(&self, key: &str) {
        let mut changes = self.attached.subscribe();
        while self.has_active(key) {
            // `self` holds the sender, so this cannot fail.
            let _ = changes.changed().await;
        }
    }

    fn has_active(&self, key: &str) -> bool {
        let known = self.lock();
        let session = known.by_key.get(key);
        session.is_some_and(|session| session.attachments.contains_key(&session.active))
    }

    pub(crate) fn acknowledge(&self, key: &str, attachment: u64, seq: Seq) {
        self.advance(key, attachment, false, |progress| progress.acknowledge(seq));
    }

    /// Records that the client acted on entry `seq`, and so has everything up to there for certain.
    pub(crate) fn has_seen(&self, key: &str, attachment: u64, seq: Seq) {
        self.advance(key, attachment, true, |progress| {
            progress.acknowledge(seq);
            progress.position.sure = progress.position.sure.max(seq);
            progress.lower_if_replayed(Instant::now());
        });
    }

    /// Records that the execution is replayed on request over this attachment. Its entries come after `before`. If the
    /// session reconnects within [`GRACE`], the execution is replayed again.
    pub(crate) fn record_replay(&self, key: &str, attachment: u64, msg_id: &str, before: Seq) {
        self.advance(key, attachment, true, |progress| progress.replay(msg_id, before));
    }

    fn advance(&self, key: &str, attachment: u64, store_at_once: bool, advance: impl FnOnce(&mut Progress)) {
        let mut known = self.lock();
        if let Some(session) = known.by_key.get_mut(key)
            && !session.tracks_position
            && let Some(progress) = session.attachments.get_mut(&attachment)
        {
            advance(progress);
            if let Some(update) = session.store(key, store_at_once) {
                self.log.update_index([update]);
            }
        }
    }

    /// Records that the client sent a message over this attachment, which shows that messages over it reach the client.
    pub(crate) fn mark_active(&self, key: &str, attachment: u64) {
        let mut known = self.lock();
        if let Some(session) = known.by_key.get_mut(key)
            && session.attachments.contains_key(&attachment)
        {
            // A late message over an older attachment does not change the active one.
            session.active = session.active.max(attachment);
        }
    }

    pub(crate) fn leave(&self, key: &str, attachment: u64) {
        let mut known = self.lock();
        known.clock += 1;
        let now = known.clock;
        if let Some(session) = known.by_key.get_mut(key)
            && let Some(progress) = session.attachments.remove(&attachment)
        {
            session.changed = now;
            if session.active == attachment {
                session.left = Some(progress);
            }
            if session.tracks_position {
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

    fn count(&self, known: &SessionTable) {
        let attached = known.by_key.values().filter(|session| !session.is_away());
        self.attached.send_replace(attached.count());
    }
}
