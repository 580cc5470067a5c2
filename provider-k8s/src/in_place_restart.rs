//! Restarts in place: the pod is kept while its kernel ends and another one starts in it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{ExitCause, ProviderError};
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::sync::watch;
use tokio_util::task::AbortOnDrop;

use crate::cluster::Cluster;
use crate::{names, phase};

const HOLD_SCRIPT: &str = include_str!("shell/hold.sh");
/// How long the command in the pod may take to confirm the hold or a request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit on the command's whole output, in bytes.
const MAX_OUTPUT_BYTES: u64 = 4096;

/// A hold on a pod, which keeps it from ending with its kernel.
///
/// A command in the pod's container keeps the hold until this is dropped. After that, a kernel that is still running
/// continues normally, and a kernel that has ended is started again.
pub(crate) struct RestartHold {
    uid: String,
    stdin: Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>,
    status: watch::Receiver<HoldStatus>,
    _reader: AbortOnDrop,
}

/// The last status that the command reported.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HoldStatus {
    Pending,
    Held,
    Ended(i32),
    /// No more status will arrive: the command has ended, or the connection to it is lost.
    Closed,
}

impl RestartHold {
    /// Starts to hold the pod for at most `longest`. The pod must have been created for restarts in place.
    ///
    /// # Errors
    /// [`ProviderError`] if no command can be run in the pod, or the image lacks a program that the command needs.
    pub(crate) async fn begin(cluster: &Cluster, pod: &Pod, longest: Duration) -> Result<Self, ProviderError> {
        let name = names::name(pod);
        let failed = |reason: String| ProviderError::failed(format!("keep the pod {name} for a restart"), reason);
        let params = AttachParams::default()
            .container(names::CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(false);
        let begin = async {
            let mut process = cluster
                .exec(pod, ["sh", "-c", HOLD_SCRIPT, "sh", names::COPY_DIR], &params)
                .await?;
            let streams = process.stdin().zip(process.stdout());
            let (stdin, stdout) =
                streams.ok_or_else(|| failed("the command has no standard input or output".to_owned()))?;
            let (sender, mut status) = watch::channel(HoldStatus::Pending);
            let lines = BufReader::new(stdout.take(MAX_OUTPUT_BYTES)).lines();
            let reader = tokio::spawn(async move {
                let _ = tokio::time::timeout(longest, read_status(process, lines, &sender)).await;
                sender.send_replace(HoldStatus::Closed);
            });
            let hold = Self {
                uid: names::uid(pod).to_owned(),
                stdin: Box::new(stdin),
                status: status.clone(),
                _reader: AbortOnDrop::new(reader.abort_handle()),
            };
            match status
                .wait_for(|status| *status != HoldStatus::Pending)
                .await
                .as_deref()
            {
                Ok(HoldStatus::Closed) | Err(_) => {
                    Err(failed("the image must contain sh, cat, mkfifo, mv and rm".to_owned()))
                }
                Ok(_) => Ok(hold),
            }
        };
        match tokio::time::timeout(REPLY_TIMEOUT, begin).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("the command did not answer within {REPLY_TIMEOUT:?}"))),
        }
    }

    /// Whether this still holds the pod with this UID.
    pub(crate) fn is_of(&self, uid: &str) -> bool {
        self.uid == uid && *self.status.borrow() != HoldStatus::Closed
    }

    /// Waits until the kernel and all processes that it started are gone.
    ///
    /// Returns how the kernel ended, or `None` if the connection to the command is lost first.
    pub(crate) fn ended(&self) -> impl Future<Output = Option<ExitCause>> + Send + use<> {
        let mut status = self.status.clone();
        async move {
            let is_known = |status: &HoldStatus| matches!(status, HoldStatus::Ended(_) | HoldStatus::Closed);
            match status.wait_for(is_known).await.as_deref() {
                Ok(HoldStatus::Ended(code)) => Some(phase::exit_cause(*code)),
                _ => None,
            }
        }
    }

    /// Sends a signal, named without its `SIG` prefix, to the kernel.
    pub(crate) async fn signal(&mut self, signal: &str) {
        self.send_line(signal).await;
    }

    /// Starts the kernel again after it has ended.
    pub(crate) async fn start_kernel(mut self) {
        self.send_line("go").await;
        // The command exits once it has read the request.
        let gone = self.status.wait_for(|status| *status == HoldStatus::Closed);
        let _ = tokio::time::timeout(REPLY_TIMEOUT, gone).await;
    }

    /// Sends one line to the command. A failed write is ignored, because the status then becomes `Closed`.
    async fn send_line(&mut self, word: &str) {
        let _ = self.stdin.write_all(format!("{word}\n").as_bytes()).await;
        let _ = self.stdin.flush().await;
    }
}

/// Reads the command's status lines until it exits or the connection is lost.
async fn read_status<R>(_process: AttachedProcess, mut lines: Lines<R>, sender: &watch::Sender<HoldStatus>)
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    while let Ok(Some(line)) = lines.next_line().await {
        let code = line.strip_prefix("ended ").and_then(|code| code.trim().parse().ok());
        sender.send_replace(code.map_or(HoldStatus::Held, HoldStatus::Ended));
    }
}
