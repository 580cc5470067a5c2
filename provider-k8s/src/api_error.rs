//! What the API server's refusals mean.

use std::future::Future;
use std::time::Duration;

use kernel_provider::provider::{LaunchError, ProviderError};
use kube::runtime::watcher;

/// The longest that one call may take. The client's own default is minutes.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes one call, within its time. What is not a kube error is that it took too long.
pub(crate) async fn call<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(done) => done.map_err(CallError::Kube),
        Err(_) => Err(CallError::TimedOut),
    }
}

/// A call did not succeed.
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
    /// The HTTP status of the API server's own answer; `None` where it gave none, so that the call may have been
    /// carried out or not.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether something else has this name.
    pub(crate) fn already_exists(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists")
    }

    /// Whether something was changed at the same time; the same call may succeed now.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409) && !self.already_exists()
    }

    /// As an error of the provider.
    pub(crate) fn failed(&self, action: impl Into<String>) -> ProviderError {
        ProviderError::failed(action, self.text())
    }

    /// What the API server said, or what kept it from saying anything.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Kube(error) => text(error),
            Self::TimedOut => format!("the API server does not answer within {CALL_TIMEOUT:?}"),
        }
    }

    /// As the reason why a pod or its Secret could not be made.
    pub(crate) fn launch_error(&self, what: &str) -> LaunchError {
        let reason = self.text();
        match self.code() {
            Some(403) if reason.contains("exceeded quota") => LaunchError::NoRoom { reason },
            Some(400 | 403 | 404 | 405 | 409 | 413 | 415 | 422) => LaunchError::CannotStart {
                what: what.to_owned(),
                reason,
            },
            _ => self.failed(format!("make {what}")).into(),
        }
    }
}

/// What a watch's error says, in one line.
pub(crate) fn watch_error_text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => text(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The error and what is below it, each once.
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
