//! Errors of calls to the API server.

use std::future::Future;
use std::time::Duration;

use kernel_provider::{LaunchError, ProviderError};
use kube::runtime::watcher;

/// Time limit of one call, including the client's retries. An embedder's client may have no limit of its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes one call, with a time limit.
///
/// # Errors
/// [`CallError::Kube`] if the call fails, [`CallError::TimedOut`] if it exceeds the time limit.
pub(crate) async fn call<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(done) => done.map_err(CallError::Kube),
        Err(_) => Err(CallError::TimedOut),
    }
}

/// A failed call to the API server.
#[derive(Debug)]
pub(crate) enum CallError {
    Kube(kube::Error),
    TimedOut,
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(error)
    }
}

impl CallError {
    /// The HTTP status of the API server's answer. `None` if there was no answer, so the call may or may not have been
    /// carried out.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether another object already has this name.
    pub(crate) fn already_exists(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists")
    }

    /// Whether the call lost to a concurrent change. Repeating the call may succeed.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409) && !self.already_exists()
    }

    /// Converts to a provider error for a failed `action`, such as "delete the pod x".
    pub(crate) fn failed(&self, action: impl Into<String>) -> ProviderError {
        ProviderError::failed(action, self.text())
    }

    /// The API server's message, or the reason why there was no answer.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Kube(error) => text(error),
            Self::TimedOut => format!("the API server did not answer within {CALL_TIMEOUT:?}"),
        }
    }

    /// Converts to a launch error for a failed `verb`, such as "create", of an `object`, such as "the pod x".
    pub(crate) fn launch_error(&self, verb: &str, object: &str) -> LaunchError {
        let reason = self.text();
        match self.code() {
            Some(403) if reason.contains("exceeded quota") => LaunchError::NoRoom { reason },
            Some(400 | 403 | 404 | 405 | 409 | 413 | 415 | 422) => LaunchError::CannotStart {
                what: object.to_owned(),
                reason,
            },
            _ => self.failed(format!("{verb} {object}")).into(),
        }
    }
}

/// The message of a failed watch, without [`watcher`]'s own prefix.
pub(crate) fn watch_error_text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => text(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The messages of an error and its sources, each once.
fn text(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(below) = source {
        let more = below.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = below.source();
    }
    text
}
