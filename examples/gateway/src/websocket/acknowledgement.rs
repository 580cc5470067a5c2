use std::sync::{Mutex, MutexGuard, PoisonError};

use kernel_provider::log::Seq;
use kernel_provider::session::Client;
use tokio::time::{Duration, Instant};

/// How long a client may not answer a Ping before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the client is known to have, from its Pongs.
pub(super) struct Acknowledgement {
    client: Client,
    state: Mutex<State>,
}

struct State {
    /// The last entry that was written.
    sent: Seq,
    /// The one before a Ping that is not answered yet, and when the Ping was written.
    asked: Option<(Seq, Instant)>,
    acknowledged: Seq,
}

impl State {
    fn ask(&mut self) -> Option<[u8; 8]> {
        if self.asked.is_some() {
            return None;
        }
        self.asked = Some((self.sent, Instant::now()));
        Some(self.sent.0.to_be_bytes())
    }
}

impl Acknowledgement {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            state: Mutex::new(State {
                sent: Seq::START,
                asked: None,
                acknowledged: Seq::START,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries up to `seq` were written, or are not for this client.
    pub(super) fn sent(&self, seq: Seq) {
        self.lock().sent = seq;
    }

    /// The payload of a Ping that asks for the entries written since the last one; `None` where there are none, or
    /// where a Ping is on its way already.
    pub(super) fn ask(&self) -> Option<[u8; 8]> {
        let mut state = self.lock();
        if state.sent <= state.acknowledged {
            return None;
        }
        state.ask()
    }

    /// The payload of a Ping that only asks whether the client is there; `None` where a Ping is on its way already.
    pub(super) fn ask_alive(&self) -> Option<[u8; 8]> {
        self.lock().ask()
    }

    /// The client answered a Ping. Others' Pongs are none of ours.
    pub(super) fn answered(&self, payload: &[u8]) {
        let mut state = self.lock();
        if let Some((seq, _)) = state.asked
            && payload == seq.0.to_be_bytes()
        {
            state.asked = None;
            state.acknowledged = seq;
            self.client.acknowledge(seq);
        }
    }

    /// When the client counts as gone, should it not answer.
    pub(super) fn gone_at(&self) -> Option<Instant> {
        self.lock().asked.map(|(_, since)| since + PATIENCE)
    }
}
