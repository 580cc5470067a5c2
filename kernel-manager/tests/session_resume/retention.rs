//! Retention of a running kernel's log.

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::Channel;
use kernel_log::{LogOptions, Logs, MemoryStore, Seq};
use kernel_manager::{AtClose, Manager, ManagerOptions};

use crate::fixture::{Fixture, request, soon, start};

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_drops_entries_beyond_the_age_limit() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut log_options = LogOptions::default();
    log_options.stored_age = Some(Duration::from_millis(50));
    let logs = Logs::new(fixture.store.clone(), log_options).unwrap();
    let mut options = ManagerOptions::default();
    options.culling.interval = Duration::from_millis(10);
    let manager = Manager::new(vec![Arc::new(fixture.provider.clone())], logs, options);
    let kernel = start(&manager).await;
    let log = kernel.log().clone();
    // The newest block is always kept, so there must be a second one. A request is stored before it is sent, in a
    // separate block.
    let message = request("print x", "s").to_wire();
    soon(kernel.send(&"s".into(), Channel::Shell, message)).await.unwrap();
    soon(async {
        while log.earliest() <= Seq(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
