//! Kernels that print increasing numbers, and checks of the recorded numbers.

#![allow(dead_code, reason = "each test program uses only a part")]

use std::sync::Arc;

use jupyter_protocol::content::ExecuteRequest;
use kernel_log::{Entry, LogOptions, LogStore, Logs, Origin, Seq};
use kernel_manager::{Kernel, Manager, ManagerOptions, StartRequest};
use provider_k8s::K8sProvider;

use super::common::LONG;

pub(crate) fn manager(provider: K8sProvider, store: Arc<dyn LogStore>) -> Manager {
    let logs = Logs::new(store, LogOptions::default()).unwrap();
    Manager::new(vec![Arc::new(provider)], logs, ManagerOptions::default())
}

pub(crate) async fn start(manager: &Manager) -> Arc<Kernel> {
    let mut request = StartRequest::new("python3");
    request.timeout = LONG;
    manager.start(request).await.unwrap()
}

/// Makes the kernel print the numbers from 0 to `below - 1`, a hundred per second.
pub(crate) async fn start_counting(kernel: &Arc<Kernel>, below: u64) {
    let code = format!("import time\nfor i in range({below}):\n    print(i, flush=True)\n    time.sleep(0.01)");
    kernel.execute(ExecuteRequest::new(code)).await.unwrap();
}

/// The recorded numbers.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// How often the log records a possible gap.
    pub(crate) gaps: usize,
}

/// Waits until the kernel has printed the number `until`. Fails if a number is repeated, or missing without a recorded
/// gap.
pub(crate) async fn wait_until_counted(kernel: &Kernel, until: u64) -> Counted {
    let mut reader = kernel.log().reader(Seq(0));
    let mut counted: Option<Counted> = None;
    let (mut gaps, mut may_skip) = (0, false);
    let counting = async {
        while counted.as_ref().is_none_or(|counted| counted.last < until) {
            let block = reader.next().await.unwrap().expect("the log has ended");
            for entry in block.entries() {
                if is_gap(&entry) {
                    (gaps, may_skip) = (gaps + 1, true);
                }
                for number in printed(&entry) {
                    let counted = counted.get_or_insert(Counted {
                        first: number,
                        last: number,
                        gaps,
                    });
                    let is_next = number == counted.last + 1 || number == counted.first && number == counted.last;
                    assert!(
                        is_next || may_skip && number > counted.last,
                        "{number} after {}",
                        counted.last
                    );
                    (counted.last, may_skip) = (number, false);
                }
            }
        }
    };
    tokio::time::timeout(LONG, counting)
        .await
        .expect("the kernel stopped counting");
    let mut counted = counted.unwrap();
    counted.gaps = gaps;
    counted
}

/// Returns the last number recorded so far.
pub(crate) async fn last_number(kernel: &Kernel) -> u64 {
    let head = kernel.log().head();
    let mut reader = kernel.log().reader(Seq(0));
    let (mut last, mut at) = (0, Seq(0));
    while at < head {
        let block = reader.next().await.unwrap().expect("the log has ended");
        at = block.last();
        last = block.entries().flat_map(|entry| printed(&entry)).last().unwrap_or(last);
    }
    last
}

fn printed(entry: &Entry) -> Vec<u64> {
    let message = entry.message();
    if entry.origin() != Origin::Kernel || message.header_ref().unwrap().msg_type != "stream" {
        return Vec::new();
    }
    let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
    let lines = content["text"].as_str().unwrap().lines();
    lines.filter_map(|line| line.trim().parse().ok()).collect()
}

/// Whether an entry records that output may be missing.
fn is_gap(entry: &Entry) -> bool {
    let content = entry.message().content().to_vec();
    let text = String::from_utf8_lossy(&content);
    entry.origin() == Origin::Lifecycle && (text.contains("\"disconnected\"") || text.contains("\"attached\""))
}
