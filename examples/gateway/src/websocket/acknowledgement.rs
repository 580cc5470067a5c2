use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use kernel_log::Seq;
use kernel_manager::Client;
use tokio::time::{Duration, Instant};

/// How long a client may take to answer a Ping.
const PATIENCE: Duration = Duration::from_secs(90);
/// The most Pings in flight. More than one, so that a client that disconnects because of a message, as JupyterLab does
/// when its kernel restarts, has answered the Ping that came with it.
const MAX_ASKED: usize = 8;

/// Tracks what the client has received, by its Pongs.
pub(super) struct Acknowledgement {
    /// `None` for a past kernel, whose readers' positions are not stored.
    client: Option<Client>,
    state: Mutex<State>,
}

struct State {
    /// The last entry that was written.
    sent: Seq,
    /// Entries before unanswered Pings, and when each Ping was written.
    asked: VecDeque<(Seq, Instant)>,
    acknowledged: Seq,
}

impl State {
    fn ask(&mut self) -> [u8; 8] {
        self.asked.push_back((self.sent, Instant::now()));
        self.sent.0.to_be_bytes()
    }
}

impl Acknowledgement {
    pub(super) fn new(client: Option<Client>) -> Self {
        Self {
            client,
            state: Mutex::new(State {
                sent: Seq::START,
                asked: VecDeque::new(),
                acknowledged: Seq::START,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        kernel_provider::lock(&self.state)
    }

    /// Records that entries up to `seq` were written or are not for this client.
    pub(super) fn sent(&self, seq: Seq) {
        self.lock().sent = seq;
    }

    /// Payload of a Ping for the entries since the previous one; `None` if there are none or [`MAX_ASKED`] Pings are in
    /// flight.
    pub(super) fn ask(&self) -> Option<[u8; 8]> {
        let mut state = self.lock();
        let asked = state.asked.back().map_or(state.acknowledged, |(seq, _)| *seq);
        (state.sent > asked && state.asked.len() < MAX_ASKED).then(|| state.ask())
    }

    /// Payload of a Ping that only checks the connection; `None` if a Ping is in flight.
    pub(super) fn ask_alive(&self) -> Option<[u8; 8]> {
        let mut state = self.lock();
        state.asked.is_empty().then(|| state.ask())
    }

    /// Records that the client answered a Ping and thus all earlier ones (RFC 6455 section 5.5.3). Other Pongs are
    /// ignored.
    pub(super) fn answered(&self, payload: &[u8]) {
        let mut state = self.lock();
        let mut asked = state.asked.iter().map(|(seq, _)| *seq).enumerate();
        if let Some((place, seq)) = asked.rfind(|(_, seq)| payload == seq.0.to_be_bytes()) {
            state.asked.drain(..=place);
            state.acknowledged = seq;
            if let Some(client) = &self.client {
                client.acknowledge(seq);
            }
        }
    }

    /// When an unanswered Ping times out.
    pub(super) fn gone_at(&self) -> Option<Instant> {
        self.lock().asked.front().map(|(_, since)| *since + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_sent_while_pings_are_in_flight_get_another_ping() {
        let acknowledgement = Acknowledgement::new(None);
        let asked: Vec<_> = (1..=20)
            .filter_map(|seq| {
                acknowledgement.sent(Seq(seq));
                acknowledgement.ask()
            })
            .collect();
        assert_eq!(asked.len(), MAX_ASKED, "a flood is not a flood of Pings");
        assert!(acknowledgement.ask_alive().is_none());
        // The last Pong covers earlier ones; late ones are ignored.
        for pong in [&asked[MAX_ASKED - 1], &asked[0]] {
            acknowledgement.answered(pong);
            assert_eq!(acknowledgement.lock().acknowledged, Seq(MAX_ASKED as u64));
        }
        assert!(acknowledgement.gone_at().is_none());
        assert_eq!(acknowledgement.ask(), Some(20_u64.to_be_bytes()));
        assert!(acknowledgement.ask().is_none(), "nothing was sent since");
    }
}
