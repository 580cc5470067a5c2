//! Starts and ends ipykernel over Unix sockets and over TCP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Fixture, launch, pid, python};
use jupyter_protocol::Transport;
use jupyter_protocol::client::Client;
use kernel_provider::{ExitCause, Interrupt, Phase};
use provider_local::TransportChoice;

#[tokio::test(flavor = "multi_thread")]
async fn ipykernel_starts_and_ends_over_each_transport() {
    let Some(python) = python() else { return };
    for (choice, transport) in [
        (TransportChoice::Auto, Transport::Ipc),
        (TransportChoice::Tcp, Transport::Tcp),
    ] {
        let fixture = Fixture::new();
        fixture.install_ipykernel(&python);
        let provider = fixture.open_with(choice).await;
        let kernel = launch(&provider, "python3").await.unwrap();
        assert_eq!(*kernel.phase().borrow(), Phase::Running);
        let connection = kernel.connection().await.unwrap();
        assert_eq!(connection.transport, transport);
        // The sockets open before ipykernel handles signals. Once it replies, it handles them.
        Client::connect(&connection).await.unwrap().kernel_info().await.unwrap();
        assert_eq!(kernel.interrupt().await.unwrap(), Interrupt::Signalled);
        assert_eq!(fixture.processes(), [pid(&*kernel)]);
        let exit = kernel.shutdown(Duration::from_secs(10)).await.unwrap();
        assert_eq!(exit.cause, ExitCause::Requested);
        assert_eq!(kernel.wait().await, exit);
        assert!(fixture.processes().is_empty() && fixture.kernel_dirs().is_empty());
    }
}
