//! Watches a kernel's process or pod and restarts it when it ends by itself.

use std::sync::Arc;
use std::time::Duration;

use kernel_provider::Phase;
use tokio::time::Instant;

use crate::kernel::{Kernel, Recovery};

/// Watches the kernel until it is dead or shut down. Restarts it at most `limit` times; a run longer than
/// `stable_after` resets the count.
pub(super) async fn watch(kernel: Arc<Kernel>, limit: u32, stable_after: Duration) {
    let mut phase = kernel.handle().phase();
    let mut ends = 0;
    let mut alive_since = Instant::now();
    loop {
        let exit = match phase
            .wait_for(|phase| matches!(phase, Phase::Exited(_)))
            .await
            .as_deref()
        {
            Ok(Phase::Exited(exit)) => exit.clone(),
            _ => return,
        };
        if alive_since.elapsed() > stable_after {
            ends = 0;
        }
        match kernel.recover(exit, limit.saturating_sub(ends)).await {
            Recovery::Restarted => ends += 1,
            Recovery::NotNeeded => {}
            Recovery::Over => return,
        }
        alive_since = Instant::now();
    }
}
