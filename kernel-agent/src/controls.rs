//! Requests from the gateway to the agent.

use std::collections::VecDeque;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use kernel_provider::agent::{Answer, Control, Request};
use kernel_provider::{ExitCause, Interrupt, Progress, ProviderError, lock};
use tokio::sync::watch;

use crate::agent::Agent;

/// How many requests are remembered, so that a request that is repeated after a reconnect is carried out once.
const REMEMBERED: usize = 64;
/// Maximum number of output bytes of a starting kernel that are read.
const OUTPUT_TAIL: u64 = 8 * 1024;

/// Requests and their answers, oldest first.
#[derive(Default)]
pub(crate) struct Controls(Mutex<VecDeque<(u64, watch::Receiver<Option<Answer>>)>>);

impl Agent {
    /// Carries out a request, unless it was received before, and returns its answer.
    pub(crate) async fn answer(self: &Arc<Self>, request: Request) -> Option<Answer> {
        let mut answer = {
            let mut known = lock(&self.controls.0);
            let before = known.iter().find(|(id, _)| *id == request.id);
            match before {
                Some((_, answer)) => answer.clone(),
                None => {
                    let (sender, answer) = watch::channel(None);
                    known.push_back((request.id, answer.clone()));
                    if known.len() > REMEMBERED {
                        known.pop_front();
                    }
                    let agent = self.clone();
                    // A separate task, so that the request is completed even if the connection is lost.
                    tokio::spawn(async move {
                        let answer = agent.control(request.control).await;
                        sender.send_replace(Some(answer));
                    });
                    answer
                }
            }
        };
        answer.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// The output of a kernel that is still starting.
    fn early_output(&self) -> String {
        let folders = std::fs::read_dir(self.launch.dir.join("kernels")).into_iter().flatten();
        let outputs = folders.flatten().filter_map(|folder| {
            let mut file = std::fs::File::open(folder.path().join("output.log")).ok()?;
            let length = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_TAIL))).ok()?;
            let mut end = Vec::new();
            file.take(OUTPUT_TAIL).read_to_end(&mut end).ok()?;
            Some(String::from_utf8_lossy(&end).into_owned())
        });
        outputs.collect()
    }

    async fn control(self: &Arc<Self>, control: Control) -> Answer {
        if control == Control::Output && self.kernel().is_none() {
            return Answer::Output(self.early_output());
        }
        let mut started = self.started.subscribe();
        // The agent holds the sender, so this cannot fail.
        if let Ok(started) = started.wait_for(Option::is_some).await
            && let Some(Err(error)) = &*started
        {
            return Answer::NotStarted(error.clone());
        }
        let Some(kernel) = self.kernel() else {
            let not_yet = ExitCause::Unknown("it has not started".to_owned());
            return Answer::Failed(ProviderError::Gone(not_yet));
        };
        match control {
            Control::Started => Answer::Done,
            Control::Interrupt => match kernel.interrupt().await {
                Ok(Interrupt::Signalled) => Answer::Done,
                Ok(Interrupt::ByMessage) => Answer::InterruptByMessage,
                Err(error) => Answer::Failed(error),
            },
            Control::Restart { grace } => {
                let restarted = kernel.restart(grace, Progress::ignored()).await;
                // Connect to the new process before answering.
                self.sync_process().await;
                match restarted {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::NotStarted(error),
                }
            }
            Control::Shutdown { grace } => {
                let ended = kernel.shutdown(grace).await;
                self.sync_process().await;
                match ended {
                    Ok(exit) => {
                        self.ending.cancel();
                        Answer::Ended(exit)
                    }
                    Err(error) => Answer::Failed(error),
                }
            }
            Control::NoDrop => {
                self.no_drop.store(true, Ordering::Relaxed);
                Answer::Done
            }
            Control::Output => match kernel.output().await {
                Ok(output) => Answer::Output(output),
                Err(error) => Answer::Failed(error),
            },
            Control::Usage => match kernel.usage().await {
                Ok(usage) => Answer::Usage(usage),
                Err(error) => Answer::Failed(error),
            },
            Control::Connection => match kernel.connection().await {
                Ok(connection) => Answer::Connection(connection),
                Err(error) => Answer::Failed(error),
            },
            _ => Answer::Failed(ProviderError::failed(
                "carry out the request",
                "the kernel's agent is older than the gateway and does not support it; start a new kernel",
            )),
        }
    }
}
