//! Watches a kernel's process or pod and restarts it when it ends by itself.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::kernel::Recovery;
use super::{Kernel, Shared};
use crate::provider::Phase;

/// Returns when the kernel is dead or shut down.
pub(super) async fn watch(manager: Weak<Shared>, kernel: Arc<Kernel>) {
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
        let Some((limit, stable_after)) = manager
            .upgrade()
            .map(|manager| (manager.options.restart_limit, manager.options.stable_after))
        else {
            return;
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
