use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use kernel_log::Seq;
use kernel_manager::Client;
use tokio::time::{Duration, Instant};

use crate::reader_lag::Position;

/// How long a client may take to answer a Ping.
const PONG_TIMEOUT: Duration = Duration::from_secs(90);
/// The most Pings in flight. More than one, because a Ping should follow each message at once: a message may make the
/// client disconnect, as JupyterLab does when its kernel restarts, and without a Pong the message is not acknowledged.
const MAX_PINGS: usize = 8;

/// Tracks what the client has received, by its Pongs.
pub(super) struct Acknowledgement {
    /// `None` for a past kernel, whose readers' positions are not stored.
    client: Option<Client>,
    /// Shows how far the client is behind; `None` in tests.
    position: Option<Arc<Position>>,
    state: Mutex<State>,
}

struct State {
    /// The last entry that was written.
    sent: Seq,
    /// The unanswered Pings: the last entry before each Ping, and the time of the Ping.
    in_flight: VecDeque<(Seq, Instant)>,
    acknowledged: Seq,
}

impl State {
    fn ping(&mut self) -> [u8; 8] {
        self.in_flight.push_back((self.sent, Instant::now()));
        self.sent.0.to_be_bytes()
    }
}

impl Acknowledgement {
    pub(super) fn new(client: Option<Client>, position: Option<Arc<Position>>) -> Self {
        Self {
            client,
            position,
            state: Mutex::new(State {
                sent: Seq::START,
                in_flight: VecDeque::new(),
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
        if let Some(position) = &self.position {
            position.sent(seq);
        }
    }

    /// Payload of a Ping for the entries since the previous one; `None` if there are none or [`MAX_PINGS`] Pings are in
    /// flight.
    pub(super) fn ping(&self) -> Option<[u8; 8]> {
        let mut state = self.lock();
        let last_ping = state.in_flight.back().map_or(state.acknowledged, |(seq, _)| *seq);
        (state.sent > last_ping && state.in_flight.len() < MAX_PINGS).then(|| state.ping())
    }

    /// Payload of a Ping that only checks the connection; `None` if a Ping is in flight.
    pub(super) fn keep_alive_ping(&self) -> Option<[u8; 8]> {
        let mut state = self.lock();
        state.in_flight.is_empty().then(|| state.ping())
    }

    /// Records that the client answered a Ping and thus all earlier ones (RFC 6455 section 5.5.3). Other Pongs are
    /// ignored.
    pub(super) fn on_pong(&self, payload: &[u8]) {
        let mut state = self.lock();
        let mut pings = state.in_flight.iter().map(|(seq, _)| *seq).enumerate();
        if let Some((place, seq)) = pings.rfind(|(_, seq)| payload == seq.0.to_be_bytes()) {
            state.in_flight.drain(..=place);
            state.acknowledged = seq;
            if let Some(client) = &self.client {
                client.acknowledge(seq);
            }
        }
    }

    /// When an unanswered Ping times out.
    pub(super) fn pong_deadline(&self) -> Option<Instant> {
        self.lock().in_flight.front().map(|(_, since)| *since + PONG_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_sent_while_pings_are_in_flight_get_another_ping() {
        let acknowledgement = Acknowledgement::new(None, None);
        let pings: Vec<_> = (1..=20)
            .filter_map(|seq| {
                acknowledgement.sent(Seq(seq));
                acknowledgement.ping()
            })
            .collect();
        assert_eq!(
            pings.len(),
            MAX_PINGS,
            "a flood of entries must not cause a flood of Pings"
        );
        assert!(acknowledgement.keep_alive_ping().is_none());
        // The last Pong covers earlier ones; late ones are ignored.
        for pong in [&pings[MAX_PINGS - 1], &pings[0]] {
            acknowledgement.on_pong(pong);
            assert_eq!(acknowledgement.lock().acknowledged, Seq(MAX_PINGS as u64));
        }
        assert!(acknowledgement.pong_deadline().is_none());
        assert_eq!(acknowledgement.ping(), Some(20_u64.to_be_bytes()));
        assert!(acknowledgement.ping().is_none(), "nothing was sent since");
    }
}
