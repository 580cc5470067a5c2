//! How often each user may do something: limits a minute, which answer 429 with `Retry-After`.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::error::ApiError;

/// After how many checks users are forgotten who have their whole allowance.
const FORGET_AFTER: u32 = 1_024;

/// How often a user may do something within a minute, on average; they may do it all at once. `None` for no limit.
///
/// ```
/// use kernelmux_gateway::RateLimits;
///
/// let limits = RateLimits::default().with_starts(10);
/// assert_eq!(limits.starts.map(u32::from), Some(10));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimits {
    /// Starts of kernels.
    pub starts: Option<NonZeroU32>,
    /// Requests. Clients that act for others, such as a notebook server, have no limit.
    pub requests: Option<NonZeroU32>,
    /// WebSockets and event streams. Clients that act for others have no limit.
    pub connections: Option<NonZeroU32>,
}

impl RateLimits {
    /// Limits starts of kernels a minute; 0 for no limit.
    #[must_use]
    pub fn with_starts(mut self, starts: u32) -> Self {
        self.starts = NonZeroU32::new(starts);
        self
    }

    /// Limits requests a minute; 0 for no limit.
    #[must_use]
    pub fn with_requests(mut self, requests: u32) -> Self {
        self.requests = NonZeroU32::new(requests);
        self
    }

    /// Limits connections a minute; 0 for no limit.
    #[must_use]
    pub fn with_connections(mut self, connections: u32) -> Self {
        self.connections = NonZeroU32::new(connections);
        self
    }

    fn of(&self, kind: Limited) -> Option<NonZeroU32> {
        match kind {
            Limited::Starts => self.starts,
            Limited::Requests => self.requests,
            Limited::Connections => self.connections,
        }
    }
}

/// A kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    Starts,
    Requests,
    Connections,
}

impl Limited {
    const ALL: [Self; 3] = [Self::Starts, Self::Requests, Self::Connections];

    /// The names in metrics, and in messages to users.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Starts => ("starts", "starts of kernels"),
            Self::Requests => ("requests", "requests"),
            Self::Connections => ("connections", "connections"),
        }
    }
}

/// A limit, and what users have left of it.
struct Limit {
    per_minute: NonZeroU32,
    users: RateLimiter<String, HashMapStateStore<String>, DefaultClock>,
}

impl Limit {
    fn new(per_minute: NonZeroU32) -> Self {
        Self {
            per_minute,
            users: RateLimiter::hashmap(Quota::per_minute(per_minute)),
        }
    }
}

/// The limits in force.
#[derive(Default)]
pub(crate) struct Rates {
    /// Indexed by [`Limited`].
    limits: RwLock<[Option<Arc<Limit>>; Limited::ALL.len()]>,
    checks: AtomicU32,
}

/// A limit that is reached.
#[derive(Debug)]
pub(crate) struct TooMany {
    kind: Limited,
    limit: NonZeroU32,
    user: String,
    wait: Duration,
}

impl Rates {
    pub(crate) fn new(limits: RateLimits) -> Self {
        let rates = Self::default();
        rates.set(limits);
        rates
    }

    /// Replaces the limits. A limit that stays keeps what users have left.
    pub(crate) fn set(&self, limits: RateLimits) {
        let mut current = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        for kind in Limited::ALL {
            let current = &mut current[kind as usize];
            if limits.of(kind) != current.as_ref().map(|limit| limit.per_minute) {
                *current = limits.of(kind).map(|limit| Arc::new(Limit::new(limit)));
            }
        }
    }

    fn limit(&self, kind: Limited) -> Option<Arc<Limit>> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner)[kind as usize].clone()
    }

    /// Counts one more for this user.
    ///
    /// # Errors
    /// [`TooMany`] if the limit is reached; it is not counted then.
    pub(crate) fn count(&self, kind: Limited, user: &str) -> Result<(), TooMany> {
        let Some(limit) = self.limit(kind) else { return Ok(()) };
        if self.checks.fetch_add(1, Ordering::Relaxed) % FORGET_AFTER == FORGET_AFTER - 1 {
            limit.users.retain_recent();
        }
        limit.users.check_key(&user.to_owned()).map_err(|not_until| TooMany {
            kind,
            limit: limit.per_minute,
            user: user.to_owned(),
            wait: not_until.wait_time_from(DefaultClock::default().now()),
        })
    }
}

impl TooMany {
    fn seconds(&self) -> u64 {
        self.wait.as_secs() + 1
    }

    /// The limit's name in the metrics.
    pub(crate) fn limit(&self) -> &'static str {
        self.kind.names().0
    }

    /// The error, whose message says which limit it is.
    pub(crate) fn error(&self) -> ApiError {
        let Self { kind, limit, user, .. } = self;
        let ((_, kind), seconds) = (kind.names(), self.seconds());
        let message = format!("the limit of {limit} {kind} a minute for {user} is reached; try again in {seconds} s");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_retry_after(seconds)
    }
}

impl IntoResponse for TooMany {
    fn into_response(self) -> Response {
        self.error().into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    #[test]
    fn each_user_has_their_own_limit() {
        let rates = Rates::new(RateLimits::default().with_requests(2));
        for _ in 0..2 {
            rates.count(Limited::Requests, "ada").unwrap();
        }
        let refused = rates.count(Limited::Requests, "ada").unwrap_err();
        assert!(refused.wait <= Duration::from_secs(30), "{refused:?}");
        let response = refused.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let seconds: u64 = response.headers()[header::RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=31).contains(&seconds));
        rates.count(Limited::Requests, "bob").unwrap();
        for _ in 0..100 {
            rates.count(Limited::Starts, "ada").unwrap();
        }
        // Another limit leaves this one as it was; a changed one starts from zero.
        rates.set(RateLimits::default().with_requests(2).with_starts(1));
        assert!(rates.count(Limited::Requests, "ada").is_err());
        rates.set(RateLimits::default().with_requests(3));
        rates.count(Limited::Requests, "ada").unwrap();
        rates.set(RateLimits::default());
        for _ in 0..100 {
            rates.count(Limited::Requests, "ada").unwrap();
        }
    }

    #[test]
    fn users_are_forgotten() {
        let rates = Rates::new(RateLimits::default().with_requests(60_000));
        let limit = rates.limit(Limited::Requests).unwrap();
        for user in 0..4 * FORGET_AFTER {
            rates.count(Limited::Requests, &user.to_string()).unwrap();
        }
        // An allowance of 1,000 a second is whole again at once.
        assert!(limit.users.len() < 4 * FORGET_AFTER as usize, "{}", limit.users.len());
    }
}
