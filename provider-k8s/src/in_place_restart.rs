//! A restart in place: a pod that is kept while its kernel ends and another is started in it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::provider::{ExitCause, ProviderError};
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::{AbortOnDrop, names, phase};

const HOLD_SCRIPT: &str = include_str!("shell/hold.sh");
/// How long the pod may take to say that it is held.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that the command in the pod may say in all.
const MAX_OUTPUT_BYTES: u64 = 4096;

/// A command in the pod's container, without which the pod would end with its kernel. Dropping this lets go: a kernel
/// that has not ended goes on as if nothing had been, one that has ended is started anew.
pub(crate) struct RestartHold {
    uid: String,
    stdin: Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>,
    status: watch::Receiver<HoldStatus>,
    _reader: AbortOnDrop,
}

/// What the command has status last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HoldStatus {
    Pending,
    Held,
    Ended(i32),
    /// It sender no more: it is done, or the way to it is lost.
    Closed,
}

impl RestartHold {
    /// Holds the pod, which must have been made to be restarted in place, at most for as long as is status.
    ///
    /// # Errors
    /// Where no command can be run in it, or the image lacks what the command needs.
    pub(crate) async fn begin(cluster: &Cluster, pod: &Pod, longest: Duration) -> Result<Self, ProviderError> {
        let name = names::name(pod);
        let failed = |reason: String| ProviderError::failed(format!("keep the pod {name} for a restart"), reason);
        let params = AttachParams::default()
            .container(names::CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(false);
        let begun = async {
            let mut process = cluster
                .exec(pod, ["sh", "-c", HOLD_SCRIPT, "sh", names::COPY_DIR], &params)
                .await?;
            let streams = process.stdin().zip(process.stdout());
            let (stdin, stdout) = streams.ok_or_else(|| failed("it has no streams".to_owned()))?;
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
                _reader: AbortOnDrop::new(&reader),
            };
            match status
                .wait_for(|status| *status != HoldStatus::Pending)
                .await
                .as_deref()
            {
                Ok(HoldStatus::Closed) | Err(_) => Err(failed("its image must have sh, mkfifo, mv and rm".to_owned())),
                Ok(_) => Ok(hold),
            }
        };
        match tokio::time::timeout(REPLY_TIMEOUT, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(failed(format!("it does not answer within {REPLY_TIMEOUT:?}"))),
        }
    }

    /// Whether it holds the pod with this UID, still.
    pub(crate) fn is_of(&self, uid: &str) -> bool {
        self.uid == uid && *self.status.borrow() != HoldStatus::Closed
    }

    /// Waits until the kernel and all that it started is gone; how it ended, `None` where that will not be told.
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

    /// Signals the kernel.
    pub(crate) async fn signal(&mut self, signal: &str) {
        self.send_line(signal).await;
    }

    /// Starts the kernel anew, once it has ended.
    pub(crate) async fn start_kernel(mut self) {
        self.send_line("go").await;
        // That it goes away by itself shows that it has heard it.
        let gone = self.status.wait_for(|status| *status == HoldStatus::Closed);
        let _ = tokio::time::timeout(REPLY_TIMEOUT, gone).await;
    }

    /// A command that does not hear any more is seen to be over.
    async fn send_line(&mut self, word: &str) {
        let _ = self.stdin.write_all(format!("{word}\n").as_bytes()).await;
        let _ = self.stdin.flush().await;
    }
}

/// Takes in what the command sender, until it is done or the way to it is lost.
async fn read_status<R>(_process: AttachedProcess, mut lines: Lines<R>, sender: &watch::Sender<HoldStatus>)
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    while let Ok(Some(line)) = lines.next_line().await {
        let code = line.strip_prefix("ended ").and_then(|code| code.trim().parse().ok());
        sender.send_replace(code.map_or(HoldStatus::Held, HoldStatus::Ended));
    }
}
