//! What an embedder without any provider sees: the protocol, and the trait to write one.
use kernelmux::protocol::{Channel, Signer};
use kernelmux::KernelProvider;

pub fn name(provider: &dyn KernelProvider) -> &str {
    provider.name()
}

#[test]
fn the_protocol_is_there() {
    assert_eq!(Channel::Iopub.as_str(), "iopub");
    assert!(!Signer::unsigned().signs());
}
