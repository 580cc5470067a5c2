//! The suite that every provider must pass, on a real cluster, by port-forwards and by the pods' addresses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{LONG, Place};
use kernel_provider::conformance::{LAST_WORDS, Subject};
use kernel_provider::provider::{KernelProvider, KernelRecord};
use provider_k8s::Reach;

/// Ends the kernel as `kill -9` does.
const KILL: &str = r#"for file in $(grep -sl "/run/kernelmux[-rw]*/[c]onnection\.json" /proc/[0-9]*/cmdline); do
    folder=${file%/cmdline}; kill -9 "${folder##*/}"; done"#;

struct Pods {
    place: Place,
    reach: Reach,
}

impl Pods {
    async fn new(reach: Reach) -> Option<Self> {
        if reach == Reach::PodAddress && std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
            println!(
                "skipped: the pods' addresses are not reached from here (KERNELMUX_TEST_POD_ADDRESSES is not set)"
            );
            return None;
        }
        let place = Place::new().await?;
        place.install_ipykernel();
        place.install_script("dying", &format!("echo {LAST_WORDS} >&2; exit 3"));
        place.install_script("silent", &format!("echo {LAST_WORDS}; while :; do sleep 1000; done"));
        place.install(
            "missing",
            &["/no/such/program", "{connection_file}"],
            serde_json::json!({}),
        );
        Some(Self { place, reach })
    }
}

#[async_trait]
impl Subject for Pods {
    async fn open(&self) -> Arc<dyn KernelProvider> {
        Arc::new(self.place.open(self.reach).await)
    }

    fn spec(&self) -> String {
        "python3".to_owned()
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
        self.place
            .exec(record.data["pod"].as_str().unwrap(), &["sh", "-c", KILL])
            .await;
    }

    async fn leftovers(&self) -> Vec<String> {
        self.place.leftovers().await
    }

    fn patience(&self) -> Duration {
        LONG
    }

    fn short_timeout(&self) -> Duration {
        // A pod's start takes seconds.
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
