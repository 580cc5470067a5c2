//! Kernels in pods, on the cluster of `KUBECONFIG`, compared with the same pods without kernelmux.

mod fake_node;
mod many;
mod messages;
mod namespace;
mod starts;

use std::time::Duration;

use kube::Config;

use self::many::{at_once, many};
use self::messages::messages;
use self::namespace::BenchNamespace;
use self::starts::{claims, starts};
use crate::Result;
use crate::report::Section;

const DEADLINE: Duration = Duration::from_secs(120);
/// Timeout of the whole benchmark.
const TOTAL_DEADLINE: Duration = Duration::from_secs(1800);

/// Runs the benchmark if `KUBECONFIG` is set.
///
/// # Errors
/// If the cluster or a kernel fails.
pub async fn run() -> Result<Section> {
    let image = std::env::var("KERNELMUX_TEST_IMAGE").unwrap_or_else(|_| "localhost/kernelmux/python:dev".to_owned());
    let mut section = Section::new(
        "Kernels in pods",
        format!(
            "On the cluster of `KUBECONFIG`. This machine must be able to reach the addresses of its pods (`make \
             dev-cluster` starts such a cluster). The image is {image}. kernelmux is `provider-k8s` and a manager with \
             logs in memory. `provider-k8s` is connected to the pods' addresses unless a row says otherwise."
        ),
    );
    // Only with an explicit cluster, because this needs an administrator's rights and creates a fake node.
    if std::env::var_os("KUBECONFIG").is_none() {
        section.note("Not measured: `KUBECONFIG` names no cluster.");
        return Ok(section);
    }
    let config = Config::infer().await?;
    let ns = BenchNamespace::new(config, image).await?;
    let measured = async {
        starts(&ns, &mut section).await?;
        claims(&ns, &mut section).await?;
        messages(&ns, &mut section).await?;
        at_once(&ns, &mut section).await?;
        many(&ns, &mut section).await
    };
    let measured = tokio::time::timeout(TOTAL_DEADLINE, measured).await;
    ns.remove().await?;
    measured??;
    Ok(section)
}
