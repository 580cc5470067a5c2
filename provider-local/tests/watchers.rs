//! Which kernels need file system watchers. The only test of its program, because it checks all of the process's open
//! files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/standin.rs"]
mod standin;

use common::{launch, open};
use jupyter_protocol::kernelspec::SearchPath;
use kernel_provider::Specs;
use standin::fixture;

#[tokio::test]
#[ignore = "run by other tests as a kernel"]
async fn serve_as_kernel() {
    standin::serve_if_requested().await;
}

#[tokio::test]
async fn kernels_whose_output_goes_through_pipes_need_no_watchers() {
    let fixture = fixture();
    let mut config = fixture.config().with_output_pipes(true);
    // Without search folders, the provider does not watch for changes of kernelspecs.
    config.kernelspecs = Specs::find(&config.search).by_name.into_values().collect();
    config.search = SearchPath::default();
    let provider = open(config).await;
    let kernel = launch(&provider, "stand-in").await.unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    assert!(!targets.any(|target| target.to_string_lossy().contains("inotify")));
    kernel.shutdown(common::LONG).await.unwrap();
}
