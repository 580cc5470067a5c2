//! A program's view of the log, built from a client's events.

use gateway_client::resume::NotRecovered;
use gateway_client::resume::client::{ConnectionLost, Event, ResumeClient};
use jupyter_protocol::{Channel, WireMessage};

use super::gateway::Gateway;

enum Seen {
    Entry(Channel, WireMessage),
    Missing,
}

/// The entries and gaps since the client last started over.
#[derive(Default)]
pub(crate) struct View {
    epoch: String,
    last: Option<u64>,
    seen: Vec<(u64, Seen)>,
    pub(crate) connections: usize,
    pub(crate) disconnects: Vec<ConnectionLost>,
    pub(crate) not_recovered: Vec<NotRecovered>,
}

impl View {
    /// Applies the client's latest event. Panics if it is not a valid next one.
    pub(crate) fn take(&mut self, event: Event, client: &ResumeClient) {
        match event {
            Event::Connected(hello) => {
                self.connections += 1;
                if self.last.is_none() {
                    (self.epoch, self.last) = (hello.epoch.to_string(), Some(hello.from.0));
                }
                assert_eq!(
                    (hello.epoch.to_string(), hello.from.0),
                    (self.epoch.clone(), self.last())
                );
            }
            Event::NotRecovered(hello) => {
                self.connections += 1;
                self.not_recovered.push(hello.reason.unwrap());
                self.seen.clear();
                (self.epoch, self.last) = (hello.epoch.to_string(), Some(hello.from.0));
            }
            Event::Entry(entry) => {
                assert_eq!(entry.seq.0, self.last() + 1);
                self.last = Some(entry.seq.0);
                self.seen.push((entry.seq.0, Seen::Entry(entry.channel, entry.message)));
            }
            Event::Gap { first, last } => {
                assert_eq!(first.0, self.last() + 1);
                self.last = Some(last.0);
                self.seen.extend((first.0..=last.0).map(|seq| (seq, Seen::Missing)));
            }
            Event::Disconnected { reason, .. } => {
                self.disconnects.push(reason);
                return;
            }
            other => panic!("{other:?}"),
        }
        let cursor = client.cursor().unwrap();
        assert_eq!(
            (cursor.epoch.to_string(), cursor.seq.0),
            (self.epoch.clone(), self.last())
        );
    }

    fn last(&self) -> u64 {
        self.last.expect("not connected yet")
    }

    pub(crate) fn seqs(&self) -> Vec<u64> {
        self.seen.iter().map(|(seq, _)| *seq).collect()
    }

    /// Returns whether entries were missing, now or before the client last started over.
    pub(crate) fn has_gaps(&self) -> bool {
        !self.not_recovered.is_empty() || self.seen.iter().any(|(_, seen)| matches!(seen, Seen::Missing))
    }

    /// Checks that the view equals the gateway's log.
    pub(crate) fn check(&self, gateway: &Gateway) {
        assert_eq!(self.epoch, gateway.epoch().to_string());
        assert_eq!(self.last(), *gateway.range().end());
        for (seq, seen) in &self.seen {
            match seen {
                Seen::Entry(channel, message) => {
                    let (expected_channel, expected) = gateway.entry(&self.epoch, *seq).unwrap();
                    assert_eq!(*channel, expected_channel);
                    assert_eq!(message.parts_and_buffers(), expected.parts_and_buffers());
                }
                Seen::Missing => assert!(
                    gateway.is_missing(&self.epoch, *seq),
                    "entry {seq} was reported missing"
                ),
            }
        }
    }
}
