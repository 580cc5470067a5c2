//! A restart in place: a pod that is kept while its kernel ends and another is started in it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::provider::{ExitCause, ProviderError};
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::{AbortOnDrop, names, phase};

const HOLDING: &str = include_str!("shell/hold.sh");
/// How long the pod may take to say that it is held.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest that the command in the pod may say in all.
const MOST_SAID: u64 = 4096;

/// A command in the pod's container, without which the pod would end with its kernel. Dropping this lets go: a kernel
/// that has not ended goes on as if nothing had been, one that has ended is started anew.
pub(crate) struct Hold {
    uid: String,
    stdin: Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>,
    said: watch::Receiver<Said>,
    _hearing: AbortOnDrop,
}

/// What the command has said last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Held,
    Ended(i32),
    /// It says no more: it is done, or the way to it is lost.
    Over,
}

impl Hold {
    /// Holds the pod, which must have been made to be restarted in place, at most for as long as is said.
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
                .exec(pod, ["sh", "-c", HOLDING, "sh", names::COPY_DIR], &params)
                .await?;
            let streams = process.stdin().zip(process.stdout());
            let (stdin, stdout) = streams.ok_or_else(|| failed("it has no streams".to_owned()))?;
            let (says, mut said) = watch::channel(Said::Nothing);
            let lines = BufReader::new(stdout.take(MOST_SAID)).lines();
            let hearing = tokio::spawn(async move {
                let _ = tokio::time::timeout(longest, hear(process, lines, &says)).await;
                says.send_replace(Said::Over);
            });
            let hold = Self {
                uid: names::uid(pod).to_owned(),
                stdin: Box::new(stdin),
                said: said.clone(),
                _hearing: AbortOnDrop::new(&hearing),
            };
            match said.wait_for(|said| *said != Said::Nothing).await.as_deref() {
                Ok(Said::Over) | Err(_) => Err(failed("its image must have sh, mkfifo, mv and rm".to_owned())),
                Ok(_) => Ok(hold),
            }
        };
        match tokio::time::timeout(DEADLINE, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(failed(format!("it does not answer within {DEADLINE:?}"))),
        }
    }

    /// Whether it holds the pod with this UID, still.
    pub(crate) fn is_of(&self, uid: &str) -> bool {
        self.uid == uid && *self.said.borrow() != Said::Over
    }

    /// Waits until the kernel and all that it started is gone; how it ended, `None` where that will not be told.
    pub(crate) fn ended(&self) -> impl Future<Output = Option<ExitCause>> + Send + use<> {
        let mut said = self.said.clone();
        async move {
            let is_known = |said: &Said| matches!(said, Said::Ended(_) | Said::Over);
            match said.wait_for(is_known).await.as_deref() {
                Ok(Said::Ended(code)) => Some(phase::exit_cause(*code)),
                _ => None,
            }
        }
    }

    /// Signals the kernel.
    pub(crate) async fn signal(&mut self, signal: &str) {
        self.say(signal).await;
    }

    /// Starts the kernel anew, once it has ended.
    pub(crate) async fn go(mut self) {
        self.say("go").await;
        // That it goes away by itself shows that it has heard it.
        let gone = self.said.wait_for(|said| *said == Said::Over);
        let _ = tokio::time::timeout(DEADLINE, gone).await;
    }

    /// A command that does not hear any more is seen to be over.
    async fn say(&mut self, word: &str) {
        let _ = self.stdin.write_all(format!("{word}\n").as_bytes()).await;
        let _ = self.stdin.flush().await;
    }
}

/// Takes in what the command says, until it is done or the way to it is lost.
async fn hear<R>(_process: AttachedProcess, mut lines: Lines<R>, says: &watch::Sender<Said>)
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    while let Ok(Some(line)) = lines.next_line().await {
        let code = line.strip_prefix("ended ").and_then(|code| code.trim().parse().ok());
        says.send_replace(code.map_or(Said::Held, Said::Ended));
    }
}
