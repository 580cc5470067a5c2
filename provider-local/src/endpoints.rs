//! Where a kernel's sockets are to be.
//!
//! Two programs must not get the same port, and a kernel binds its ports only some time after it was told which. So
//! each port is held, bound but not listening, until the kernel listens on it: as long as it is held, the system gives
//! it to nobody who asks for any port, and the kernel, which as all of ZeroMQ sets `SO_REUSEADDR`, can bind it all the
//! same. A kernel that cannot fails, and is started again with ports that are not held.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use jupyter_protocol::kernelspec::Kernelspec;
use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::TransportChoice;
use kernel_provider::provider::ipykernel::starts_ipykernel;
use kernel_provider::provider::own_metadata;

/// The longest path that a Unix socket can have, in bytes (unix(7)).
pub(crate) const MAX_SOCKET_PATH: usize = 107;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The channels that have a socket each.
pub(crate) const CHANNELS: [Channel; 5] = [
    Channel::Shell,
    Channel::Iopub,
    Channel::Stdin,
    Channel::Control,
    Channel::Heartbeat,
];

/// Ports that are held until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held {
    _sockets: Vec<TcpSocket>,
}

/// Which transport the kernel is to use.
pub(crate) fn transport(choice: TransportChoice, spec: &Kernelspec) -> Transport {
    match (own_metadata(spec, "transport").and_then(Value::as_str), choice) {
        (Some("tcp"), _) | (None, TransportChoice::Tcp) => Transport::Tcp,
        (Some("ipc"), _) | (None, TransportChoice::Ipc) => Transport::Ipc,
        _ if starts_ipykernel(spec) => Transport::Ipc,
        _ => Transport::Tcp,
    }
}

/// Whether the kernel chooses its ports itself and announces them (JEP 66): its kernelspec says so with
/// `metadata.kernelmux.handshake`.
///
/// JEP 66 would have it told by a `kernel_protocol_version` of 5.5 or later. But ipykernel says 5.5 and knows of no
/// handshake.
pub(crate) fn announces_ports(spec: &Kernelspec) -> bool {
    own_metadata(spec, "handshake").and_then(Value::as_bool) == Some(true)
}

/// Gives the connection five ports that nobody has, and holds them.
///
/// Ports that it has already are kept if they are free.
///
/// # Errors
/// Where the system has no port left.
pub(crate) fn take_ports(connection: &mut ConnectionInfo) -> std::io::Result<Held> {
    connection.transport = Transport::Tcp;
    connection.ip = LOOPBACK.to_string();
    let mut held = Vec::with_capacity(CHANNELS.len());
    for channel in CHANNELS {
        let socket = hold(connection.port(channel)).or_else(|_| hold(0))?;
        connection.set_port(channel, socket.local_addr()?.port());
        held.push(socket);
    }
    Ok(Held { _sockets: held })
}

fn hold(port: u16) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(LOOPBACK, port))?;
    Ok(socket)
}

/// Gives the connection sockets in this directory.
pub(crate) fn take_sockets(connection: &mut ConnectionInfo, dir: &Path) {
    connection.transport = Transport::Ipc;
    connection.ip = dir.join("k").to_string_lossy().into_owned();
    for (channel, suffix) in CHANNELS.into_iter().zip(1..) {
        connection.set_port(channel, suffix);
    }
}

/// Whether somebody listens on one of the ports, now that the kernel that was to is gone.
pub(crate) fn is_any_taken(connection: &ConnectionInfo) -> bool {
    connection.transport == Transport::Tcp
        && CHANNELS.into_iter().any(|channel| {
            TcpListener::bind(SocketAddr::new(LOOPBACK, connection.port(channel)))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn held_ports_are_distinct_go_to_nobody_else_and_can_be_listened_on() {
        let mut connection = ConnectionInfo::default();
        let held = take_ports(&mut connection).unwrap();
        let ports: BTreeSet<u16> = CHANNELS.map(|channel| connection.port(channel)).into();
        assert_eq!(ports.len(), 5);
        for port in &ports {
            // What a kernel does: std sets SO_REUSEADDR on listeners, as ZeroMQ does.
            drop(TcpListener::bind((LOOPBACK, *port)).unwrap());
        }
        assert!(!is_any_taken(&connection));
        drop(held);
        let again = connection.clone();
        let _held = take_ports(&mut connection).unwrap();
        assert_eq!(connection, again);
    }

    #[tokio::test]
    async fn taken_ports_are_seen_and_passed_over() {
        let mut connection = ConnectionInfo::default();
        drop(take_ports(&mut connection).unwrap());
        let before = connection.clone();
        let _thief = TcpListener::bind((LOOPBACK, connection.iopub_port)).unwrap();
        assert!(is_any_taken(&connection));
        let _held = take_ports(&mut connection).unwrap();
        assert_eq!(connection.shell_port, before.shell_port);
        assert_ne!(connection.iopub_port, before.iopub_port);
    }

    #[test]
    fn ipykernel_gets_unix_sockets_and_a_kernelspec_can_choose() {
        let spec = |argv: &[&str], transport: Option<&str>| {
            let mut spec = Kernelspec {
                argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Kernelspec::default()
            };
            if let Some(transport) = transport {
                spec.metadata
                    .insert("kernelmux".into(), serde_json::json!({"transport": transport}));
            }
            spec
        };
        let ipykernel = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
        for (choice, argv, metadata, expected) in [
            (TransportChoice::Auto, &ipykernel[..], None, Transport::Ipc),
            (TransportChoice::Auto, &["R"][..], None, Transport::Tcp),
            (TransportChoice::Auto, &["R"][..], Some("ipc"), Transport::Ipc),
            (TransportChoice::Tcp, &ipykernel[..], None, Transport::Tcp),
            (TransportChoice::Ipc, &["R"][..], None, Transport::Ipc),
            (TransportChoice::Ipc, &["R"][..], Some("tcp"), Transport::Tcp),
        ] {
            assert_eq!(
                transport(choice, &spec(argv, metadata)),
                expected,
                "{choice:?} {argv:?} {metadata:?}"
            );
        }
    }
}
