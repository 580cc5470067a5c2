//! Calls into a kernel's container: its output, commands and signals.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::ProviderError;
use kube::api::{AttachParams, AttachedProcess, LogParams};

use super::Cluster;
use crate::api_error::call;
use crate::names;

/// Limits on the kernel output that is read, in bytes and in lines.
const OUTPUT_BYTES: i64 = 64 * 1024;
const OUTPUT_LINES: i64 = 400;
/// Time limit for reading the output that goes into an error.
const ERROR_OUTPUT_DEADLINE: Duration = Duration::from_secs(5);

/// Sends a signal to the processes whose command line contains the connection file's path. The brackets in
/// `[c]onnection` keep the pattern from matching the script itself.
const SIGNAL: &str = r#"
found=1
for file in $(grep -sl "/run/kernelmux[-rw]*/[c]onnection\.json" /proc/[0-9]*/cmdline); do
    folder=${file%/cmdline}
    kill -s "$1" "${folder##*/}" && found=0
done
exit $found
"#;

impl Cluster {
    /// Reads the end of the kernel's output.
    pub(crate) async fn output(&self, pod: &Pod) -> Result<String, ProviderError> {
        let name = names::name(pod);
        let params = LogParams {
            container: Some(names::CONTAINER.to_owned()),
            tail_lines: Some(OUTPUT_LINES),
            limit_bytes: Some(OUTPUT_BYTES),
            ..LogParams::default()
        };
        call(self.pods.logs(name, &params))
            .await
            .map_err(|error| error.failed(format!("read the output of the pod {name}")))
    }

    /// Reads the end of the kernel's output for an error message. Returns an empty string if it cannot be read in time.
    pub(crate) async fn output_for_error(&self, pod: &Pod) -> String {
        match tokio::time::timeout(ERROR_OUTPUT_DEADLINE, self.output(pod)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot read a kernel's output");
                String::new()
            }
            Err(_) => String::new(),
        }
    }

    /// Runs a command in the pod, in the container that `params` names.
    pub(crate) async fn exec<const N: usize>(
        &self,
        pod: &Pod,
        command: [&str; N],
        params: &AttachParams,
    ) -> Result<AttachedProcess, ProviderError> {
        let name = names::name(pod);
        call(self.pods.exec(name, command, params))
            .await
            .map_err(|error| error.failed(format!("run a command in the pod {name}")))
    }

    /// Signals the kernel by running a command in its container.
    pub(crate) async fn signal(&self, pod: &Pod, signal: &str) -> Result<(), ProviderError> {
        let name = names::name(pod);
        let action = || format!("signal the kernel in the pod {name}");
        let params = AttachParams::default()
            .container(names::CONTAINER)
            .stdout(false)
            .stderr(true);
        let signalling = async {
            let mut process = self
                .pods
                .exec(name, ["sh", "-c", SIGNAL, "sh", signal], &params)
                .await?;
            let status = process.take_status();
            let stderr = match process.stderr() {
                Some(stderr) => read_some(stderr).await,
                None => String::new(),
            };
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            Ok((status, stderr))
        };
        let (status, stderr) = call(signalling).await.map_err(|error| error.failed(action()))?;
        match status {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
            status => {
                let message = status.and_then(|status| status.message).unwrap_or_default();
                let advice = "the image must contain sh, grep and kill; interrupt_mode \"message\" needs none of them";
                Err(ProviderError::failed(
                    action(),
                    format!("{} {message} ({advice})", stderr.trim()),
                ))
            }
        }
    }
}

/// Reads at most 4 KiB.
async fn read_some(reader: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut tokio::io::AsyncReadExt::take(reader, 4096), &mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}
