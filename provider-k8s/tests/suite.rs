//! The conformance suite for providers, run on a real cluster with port-forwards and with pod addresses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{LONG, TestNamespace};
use jupyter_protocol::ConnectionInfo;
use kernel_provider::conformance::{LAST_WORDS, Probe, Subject};
use kernel_provider::{KernelHandle, KernelProvider, KernelRecord, ProviderError};
use provider_k8s::Reach;

/// Kills the kernel's process, found by the path of its connection file: the first pattern is for kernels without an
/// agent, the second for kernels with one.
const KILL: &str = r#"for file in $(grep -slE "/run/kernelmux[-rw]*/[c]onnection\.json|/kernelmux/state/[k]ernels/" \
    /proc/[0-9]*/cmdline); do folder=${file%/cmdline}; kill -9 "${folder##*/}"; done"#;

struct Pods {
    ns: TestNamespace,
    reach: Reach,
}

impl Pods {
    async fn new(reach: Reach) -> Option<Self> {
        Self::can_reach(reach).then_some(())?;
        Some(Self::of(TestNamespace::new().await?, reach))
    }

    async fn with_agents(reach: Reach) -> Option<Self> {
        Self::can_reach(reach).then_some(())?;
        Some(Self::of(TestNamespace::with_agents().await?, reach))
    }

    fn can_reach(reach: Reach) -> bool {
        if reach == Reach::PodAddress && std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
            println!("skipped: pod addresses are not reachable from here (KERNELMUX_TEST_POD_ADDRESSES is not set)");
            return false;
        }
        true
    }

    fn of(ns: TestNamespace, reach: Reach) -> Self {
        ns.install_ipykernel();
        ns.install_script("dying", &format!("echo {LAST_WORDS} >&2; exit 3"));
        ns.install_script("silent", &format!("echo {LAST_WORDS}; while :; do sleep 1000; done"));
        ns.install(
            "missing",
            &["/no/such/program", "{connection_file}"],
            serde_json::json!({}),
        );
        Self { ns, reach }
    }
}

#[async_trait]
impl Subject for Pods {
    async fn open(&self) -> Arc<dyn KernelProvider> {
        Arc::new(self.ns.open(self.reach).await)
    }

    fn spec(&self) -> String {
        "python3".to_owned()
    }

    async fn connection(&self, kernel: &dyn KernelHandle) -> Result<ConnectionInfo, ProviderError> {
        self.ns.connection(kernel).await
    }

    fn code(&self, probe: &Probe) -> Option<String> {
        Some(probe.in_python())
    }

    /// The default policy ignores a requested working directory. `cluster.rs` tests a policy that allows one.
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
        self.ns
            .exec(record.data["pod"].as_str().unwrap(), &["sh", "-c", KILL])
            .await;
    }

    async fn leftovers(&self) -> Vec<String> {
        self.ns.leftovers().await
    }

    fn step_timeout(&self) -> Duration {
        LONG
    }

    fn short_timeout(&self) -> Duration {
        // A pod takes seconds to start.
        Duration::from_secs(25)
    }
}

mod by_port_forward {
    use super::*;

    kernel_provider::provider_conformance!(Pods::new(Reach::PortForward));
}

mod by_pod_address {
    use super::*;

    kernel_provider::provider_conformance!(Pods::new(Reach::PodAddress));
}

mod agents_by_port_forward {
    use super::*;

    kernel_provider::provider_conformance!(Pods::with_agents(Reach::PortForward));
}

mod agents_by_pod_address {
    use super::*;

    kernel_provider::provider_conformance!(Pods::with_agents(Reach::PodAddress));
}
