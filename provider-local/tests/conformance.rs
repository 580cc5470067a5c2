//! The conformance suite for providers, run with ipykernel over Unix sockets and over TCP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use common::{Fixture, python};
use kernel_provider::conformance::{Probe, Subject};
use kernel_provider::{KernelProvider, KernelRecord};
use provider_local::TransportChoice;

struct Local {
    fixture: Fixture,
    transport: TransportChoice,
}

impl Local {
    async fn new(transport: TransportChoice) -> Option<Self> {
        let python = python()?;
        let fixture = Fixture::new();
        fixture.install_for_conformance(&python);
        Some(Self { fixture, transport })
    }
}

#[async_trait]
impl Subject for Local {
    async fn open(&self) -> Arc<dyn KernelProvider> {
        Arc::new(self.fixture.open_with(self.transport).await)
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
        let processes = self.fixture.processes().into_iter().map(|pid| format!("process {pid}"));
        // A kernel that ended by itself keeps its record and its output.
        let dirs = self.fixture.kernel_dirs().into_iter().filter(|dir| {
            std::fs::read_to_string(dir.join("record.json")).is_ok_and(|record| !record.contains("\"ended\""))
                || std::fs::read_dir(dir).is_ok_and(|files| {
                    files
                        .flatten()
                        .any(|file| !["record.json", "output.log"].contains(&&*file.file_name().to_string_lossy()))
                })
        });
        let sockets = std::fs::read_dir(self.fixture.state().join("s"))
            .into_iter()
            .flatten()
            .flatten();
        processes
            .chain(dirs.map(|dir| dir.display().to_string()))
            .chain(sockets.map(|socket| socket.path().display().to_string()))
            .collect()
    }
}

mod over_unix_sockets {
    use super::*;

    kernel_provider::provider_conformance!(Local::new(TransportChoice::Ipc));
}

mod over_tcp {
    use super::*;

    kernel_provider::provider_conformance!(Local::new(TransportChoice::Tcp));
}
