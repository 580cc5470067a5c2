//! The features that these providers add.
use std::time::Duration;

use embedder_provider::{Quota, batch};
use jupyter_protocol::KernelId;
use jupyter_protocol::kernelspec::SearchPath;
use kernel_provider::fake::FakeProvider;
use kernel_provider::{KernelProvider, LaunchError, LaunchRequest, Progress};
use provider_local::LocalProvider;

#[tokio::test]
async fn kernels_of_a_batch_have_its_name_and_a_low_priority() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("kernels/shows");
    std::fs::create_dir_all(&spec).unwrap();
    let kernel_json = r#"{"argv": ["sh", "-c", "echo $BATCH at $(nice); exit 3"], "display_name": "", "language": ""}"#;
    std::fs::write(spec.join("kernel.json"), kernel_json).unwrap();
    let mut options = batch(&folder.path().join("state"), "nightly");
    options.search = SearchPath::new([folder.path().join("kernels")]);
    let provider = LocalProvider::open(options).await.unwrap();
    let request = LaunchRequest::new(KernelId::random(), "shows");
    let Err(LaunchError::Died { exit }) = provider.launch(request, Progress::ignored()).await else {
        panic!("the script ends at once")
    };
    let level = exit.output.trim().strip_prefix("nightly at ").map(str::parse::<i32>);
    assert!(matches!(level, Some(Ok(10..))), "{}", exit.output);
}

#[tokio::test]
async fn the_kernels_of_an_owner_are_limited() {
    let provider = Quota::new(FakeProvider::new(), 1);
    let request = |owner: &str| {
        let mut request = LaunchRequest::new(KernelId::random(), "echo");
        request.owner = Some(owner.to_owned());
        request
    };
    let first = provider.launch(request("ada"), Progress::ignored()).await.unwrap();
    let second = provider.launch(request("ada"), Progress::ignored()).await;
    assert!(matches!(second.err(), Some(LaunchError::NoRoom { .. })));
    provider.launch(request("bob"), Progress::ignored()).await.unwrap();
    first.shutdown(Duration::from_secs(5)).await.unwrap();
    provider.launch(request("ada"), Progress::ignored()).await.unwrap();
}
