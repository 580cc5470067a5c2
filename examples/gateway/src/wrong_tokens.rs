//! Slows down addresses that guess tokens.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Wrong tokens per address that are answered without delay.
const BURST: u32 = 20;
/// Delay of the answer to each further wrong token.
const DELAY: Duration = Duration::from_secs(1);
/// The most delayed answers per address. Beyond that, tokens from the address are not checked.
const MAX_WAITING: u32 = 30;
/// The most addresses to remember. Beyond that, inactive ones are forgotten, then all.
const MAX_ADDRESSES: usize = 10_000;

/// A client's address. IPv6 hosts can choose any of the 2^64 addresses of their network, so a network counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddress(IpAddr);

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

/// Wrong tokens by address: a generic cell rate algorithm (GCRA).
#[derive(Default)]
pub(crate) struct WrongTokens {
    /// When the delays of all wrong tokens of the address are over.
    delayed_until: Mutex<HashMap<ClientAddress, Instant>>,
}

impl WrongTokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<ClientAddress, Instant>> {
        kernel_provider::lock(&self.delayed_until)
    }

    /// How long the address must wait before its next token is checked; `None` if it need not.
    pub(crate) fn locked_out(&self, address: ClientAddress, now: Instant) -> Option<Duration> {
        let delayed_until = *self.lock().get(&address)?;
        delayed_until
            .checked_duration_since(now + DELAY * (BURST + MAX_WAITING))
            .map(|left| left + DELAY)
    }

    /// Counts a wrong token and returns the delay of its answer.
    pub(crate) fn count(&self, address: ClientAddress, now: Instant) -> Duration {
        let mut all = self.lock();
        if all.len() >= MAX_ADDRESSES && !all.contains_key(&address) {
            all.retain(|_, delayed_until| *delayed_until > now);
            if all.len() >= MAX_ADDRESSES {
                all.clear();
            }
        }
        let delayed_until = all.entry(address).or_insert(now);
        *delayed_until = (*delayed_until).max(now) + DELAY;
        delayed_until.saturating_duration_since(now + DELAY * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ClientAddress {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_that_guesses_tokens_is_delayed_and_then_locked_out() {
        let (wrong, now) = (WrongTokens::default(), Instant::now());
        let (guesser, other) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..BURST {
            assert_eq!(wrong.count(guesser, now), Duration::ZERO);
        }
        for waiting in 1..=MAX_WAITING {
            assert_eq!(wrong.locked_out(guesser, now), None);
            assert_eq!(wrong.count(guesser, now), DELAY * waiting);
        }
        assert_eq!(wrong.locked_out(guesser, now), Some(DELAY));
        assert_eq!(wrong.locked_out(other, now), None);
        assert_eq!(wrong.count(other, now), Duration::ZERO);
        // After its delays, the address can try again.
        assert_eq!(wrong.locked_out(guesser, now + DELAY), None);
        assert_eq!(wrong.count(guesser, now + DELAY * 100), Duration::ZERO);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address_and_the_table_is_bounded() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
        let (wrong, now) = (WrongTokens::default(), Instant::now());
        for number in 0..=MAX_ADDRESSES as u32 {
            wrong.count(IpAddr::from(number.to_be_bytes()).into(), now);
        }
        assert!(wrong.lock().len() <= MAX_ADDRESSES);
    }
}
