//! A crate that embeds kernelmux without features: it has the protocol, and the trait for writing a provider.
use kernelmux::protocol::{Channel, Signer};
use kernelmux::KernelProvider;

pub fn name(provider: &dyn KernelProvider) -> &str {
    provider.name()
}

#[test]
fn the_protocol_is_available_without_a_provider() {
    assert_eq!(Channel::Iopub.as_str(), "iopub");
    assert!(!Signer::unsigned().signs());
}
