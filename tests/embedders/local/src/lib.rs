//! A crate that embeds kernelmux with only the feature `local`.
use std::sync::Arc;

use kernelmux::local::{LocalOptions, LocalProvider};
use kernelmux::log::{LogOptions, Logs, MemoryStore, StoreError};
use kernelmux::{Manager, ManagerOptions, ProviderError};

pub async fn provider(config: LocalOptions) -> Result<LocalProvider, ProviderError> {
    LocalProvider::open(config).await
}

pub fn manager(provider: LocalProvider) -> Result<Manager, StoreError> {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
    Ok(Manager::new(vec![Arc::new(provider)], logs, ManagerOptions::default()))
}

#[test]
fn options_have_their_documented_defaults() {
    assert_eq!(ManagerOptions::default().default_spec, None);
}
