//! The conformance suite for providers, with kernels under agents.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../provider-local/tests/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use common::{Fixture, python};
use kernel_provider::conformance::{Probe, Subject};
use kernel_provider::{KernelProvider, KernelRecord};

struct UnderAgents {
    fixture: Fixture,
}

impl UnderAgents {
    async fn new() -> Option<Self> {
        let python = python()?;
        let fixture = Fixture::new();
        fixture.install_for_conformance(&python);
        Some(Self { fixture })
    }
}

#[async_trait]
impl Subject for UnderAgents {
    async fn open(&self) -> Arc<dyn KernelProvider> {
        let options = self.fixture.config().with_agent(env!("CARGO_BIN_EXE_kernelmux-agent"));
        Arc::new(common::open(options).await)
    }

    fn spec(&self) -> String {
        "python3".to_owned()
    }

    fn code(&self, probe: &Probe) -> Option<String> {
        Some(probe.in_python())
    }

    fn working_dir(&self) -> Option<PathBuf> {
        Some(std::env::temp_dir().canonicalize().unwrap())
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
        common::kill(record);
    }

    async fn leftovers(&self) -> Vec<String> {
        let agents = self.fixture.agents();
        let processes = self.fixture.processes().into_iter().map(|pid| format!("process {pid}"));
        let sockets = std::fs::read_dir(self.fixture.state().join("s"))
            .into_iter()
            .flatten()
            .flatten();
        processes
            .chain(agents.iter().map(|dir| dir.display().to_string()))
            .chain(sockets.map(|socket| socket.path().display().to_string()))
            .collect()
    }
}

kernel_provider::provider_conformance!(UnderAgents::new());
