//! The conformance suite of providers, run on the fake provider.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kernel_provider::conformance::{LAST_WORDS, Probe, Subject};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernel_provider::{ExitCause, KernelProvider, KernelRecord, LaunchError};

struct Fake(FakeProvider);

impl Fake {
    fn new() -> Self {
        let provider = FakeProvider::new();
        provider.install("silent", FakeSpec::silent(LAST_WORDS));
        provider.install(
            "dying",
            FakeSpec::failing(LaunchError::died(ExitCause::Code(3), LAST_WORDS)),
        );
        provider.install(
            "missing",
            FakeSpec::failing(LaunchError::CannotStart {
                what: "nothing".to_owned(),
                reason: "it is not there".to_owned(),
            }),
        );
        Self(provider)
    }
}

#[async_trait]
impl Subject for Fake {
    async fn open(&self) -> Arc<dyn KernelProvider> {
        Arc::new(self.0.clone())
    }

    fn spec(&self) -> String {
        "echo".to_owned()
    }

    /// The echo kernel only prints its code, so no probe can run.
    fn code(&self, _probe: &Probe) -> Option<String> {
        None
    }

    fn working_dir(&self) -> Option<PathBuf> {
        None
    }

    fn dying_spec(&self) -> String {
        "dying".to_owned()
    }

    fn silent_spec(&self) -> String {
        "silent".to_owned()
    }

    fn missing_spec(&self) -> String {
        "missing".to_owned()
    }

    async fn kill(&self, record: &KernelRecord) {
        self.0.end(record.id, ExitCause::Signal(9));
    }

    /// The silent kernel has its output at once.
    fn short_timeout(&self) -> Duration {
        Duration::from_millis(50)
    }

    async fn leftovers(&self) -> Vec<String> {
        match self.0.running() {
            0 => Vec::new(),
            count => vec![format!("{count} kernels")],
        }
    }
}

kernel_provider::provider_conformance!(async { Some(Fake::new()) });
