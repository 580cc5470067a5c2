use std::error::Error;
use std::time::Duration;

use clap::Args;
use provider_k8s::{Input, K8sOptions, K8sProvider, Policy};

/// Flags for kernels in pods.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kernels as pods")]
pub(super) struct KubernetesFlags {
    /// Run kernels as pods in this namespace instead of as processes here; the cluster is that of KUBECONFIG, or the
    /// one that the gateway runs in
    #[arg(long, env = "KERNELMUX_KUBERNETES_NAMESPACE", value_name = "NAME")]
    pub(super) kubernetes_namespace: Option<String>,
    /// The image of kernelspecs that name none
    #[arg(long, env = "KERNELMUX_KUBERNETES_IMAGE", value_name = "IMAGE")]
    kubernetes_image: Option<String>,
    /// The image with the program kernelmux-agent, which starts each kernel in its pod and records it while no gateway runs
    /// [default: kernels are started directly]
    #[arg(long, env = "KERNELMUX_AGENT_IMAGE", value_name = "IMAGE")]
    pub(super) agent_image: Option<String>,
    /// What users may set with KERNEL_* variables, separated by commas: some of cpus, memory, gpus, working-dir, image,
    /// user-id, service-account, volumes
    #[arg(
        long,
        env = "KERNELMUX_KUBERNETES_USER_INPUTS",
        value_name = "INPUTS",
        value_delimiter = ',',
        default_value = "cpus,memory,gpus",
        value_parser = parse_input
    )]
    kubernetes_user_inputs: Vec<Input>,
    /// Images that users may choose if they may choose one, separated by commas; a final * matches any rest
    #[arg(
        long,
        env = "KERNELMUX_KUBERNETES_USER_IMAGES",
        value_name = "IMAGES",
        value_delimiter = ','
    )]
    kubernetes_user_images: Vec<String>,
    /// Service accounts that users may choose if they may choose one, separated by commas
    #[arg(
        long,
        env = "KERNELMUX_KUBERNETES_USER_SERVICE_ACCOUNTS",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    kubernetes_user_service_accounts: Vec<String>,
    /// Persistent volume claims that users may not mount if they may choose volumes, separated by commas
    #[arg(
        long,
        env = "KERNELMUX_KUBERNETES_FORBIDDEN_CLAIMS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "kernelmux-data"
    )]
    kubernetes_forbidden_claims: Vec<String>,
}

impl KubernetesFlags {
    /// Opens the namespace, if one is configured.
    pub(super) async fn open(
        &self,
        spool_bytes: u64,
        orphan_timeout: Option<Duration>,
    ) -> Result<Option<K8sProvider>, Box<dyn Error>> {
        let Some(namespace) = &self.kubernetes_namespace else {
            return Ok(None);
        };
        let mut config = K8sOptions::new(namespace);
        config.default_image.clone_from(&self.kubernetes_image);
        config.agent_image.clone_from(&self.agent_image);
        config.spool_bytes = spool_bytes;
        config.orphan_timeout = orphan_timeout;
        config.policy = self.policy();
        config.set_volumes_from_env(|name| std::env::var(name).ok())?;
        Ok(Some(K8sProvider::open(config).await?))
    }

    fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        policy.inputs = self.kubernetes_user_inputs.iter().copied().collect();
        policy.images = trimmed(&self.kubernetes_user_images).collect();
        policy.service_accounts = trimmed(&self.kubernetes_user_service_accounts).collect();
        policy.forbidden_claims = trimmed(&self.kubernetes_forbidden_claims).collect();
        policy
    }
}

fn trimmed(names: &[String]) -> impl Iterator<Item = String> {
    names
        .iter()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
}

/// The values of `--kubernetes-user-inputs`.
const INPUTS: &[(&str, Input)] = &[
    ("cpus", Input::Cpus),
    ("memory", Input::Memory),
    ("gpus", Input::Gpus),
    ("working-dir", Input::WorkingDir),
    ("image", Input::Image),
    ("user-id", Input::UserId),
    ("service-account", Input::ServiceAccount),
    ("volumes", Input::Volumes),
];

fn parse_input(text: &str) -> Result<Input, String> {
    let found = INPUTS.iter().find(|(name, _)| *name == text.trim());
    found.map(|(_, input)| *input).ok_or_else(|| {
        let names: Vec<&str> = INPUTS.iter().map(|(name, _)| *name).collect();
        format!("it must be one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_has_a_name() {
        for input in Input::ALL {
            assert!(INPUTS.iter().any(|(_, named)| *named == input), "{input}");
        }
    }
}
