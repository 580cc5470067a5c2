//! Chooses the transport and addresses of a kernel's sockets.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use jupyter_protocol::kernelspec::Kernelspec;
use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use kernel_provider::own_metadata;
use serde_json::Value;

use crate::TransportChoice;
use crate::ports::LOOPBACK;

/// Maximum length of a Unix socket's path, in bytes (unix(7)).
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// The channels that have their own socket.
pub(crate) const CHANNELS: [Channel; 5] = [
    Channel::Shell,
    Channel::Iopub,
    Channel::Stdin,
    Channel::Control,
    Channel::Heartbeat,
];

/// Chooses the kernel's transport. `argv` is its command line, with `connection_file` filled in. May read from the file
/// system.
pub(crate) fn transport(
    choice: TransportChoice,
    spec: &Kernelspec,
    argv: &[String],
    connection_file: &str,
) -> Transport {
    match (own_metadata(spec, "transport").and_then(Value::as_str), choice) {
        (Some("tcp"), _) | (None, TransportChoice::Tcp) => Transport::Tcp,
        (Some("ipc"), _) | (None, TransportChoice::Ipc) => Transport::Ipc,
        _ if is_plain_ipykernel(argv, connection_file) => Transport::Ipc,
        _ => Transport::Tcp,
    }
}

/// Whether this command starts ipykernel with a Python interpreter of this machine, as ipykernel's own kernelspec does.
///
/// Only then is it certain that the kernel and the provider see the same files. Any other program or argument may run
/// the kernel in a container, on another machine or at another address.
fn is_plain_ipykernel(argv: &[String], connection_file: &str) -> bool {
    let Some((program, arguments)) = argv.split_first() else {
        return false;
    };
    // Options of the interpreter, such as `-Xfrozen_modules=off`.
    let options = arguments
        .iter()
        .take_while(|argument| argument.starts_with("-X") && argument.len() > 2)
        .count();
    matches!(
        &arguments[options..],
        [m, module, f, file]
            if m == "-m"
                && matches!(module.as_str(), "ipykernel_launcher" | "ipykernel")
                && f == "-f"
                && file == connection_file
    ) && is_interpreter(Path::new(program))
}

/// Whether this is a Python interpreter, and not a script that starts one.
fn is_interpreter(program: &Path) -> bool {
    // A bare Python name that was found is an absolute path by now. Which program any other name starts is unknown.
    let Some(program) = program.is_absolute().then(|| program.canonicalize().ok()).flatten() else {
        return false;
    };
    let has_python_name = program
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("python") || name.starts_with("pypy"));
    let mut start = [0; 2];
    has_python_name
        && program.is_file()
        && File::open(&program).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start != *b"#!"
}

/// Whether the kernel chooses its ports itself and announces them (JEP 66), according to `metadata.kernelmux.handshake`
/// in its kernelspec.
///
/// JEP 66 intends a `kernel_protocol_version` of at least 5.5 for this. But ipykernel declares 5.5 and does not support
/// the handshake.
pub(crate) fn announces_ports(spec: &Kernelspec) -> bool {
    own_metadata(spec, "handshake").and_then(Value::as_bool) == Some(true)
}

/// Sets the connection to Unix sockets in this directory.
pub(crate) fn set_unix_sockets(connection: &mut ConnectionInfo, dir: &Path) {
    connection.transport = Transport::Ipc;
    connection.ip = dir.join("k").to_string_lossy().into_owned();
    for (channel, suffix) in CHANNELS.into_iter().zip(1..) {
        connection.set_port(channel, suffix);
    }
}

/// Whether another program listens on one of the connection's ports. The kernel itself must have ended.
pub(crate) fn is_any_taken(connection: &ConnectionInfo) -> bool {
    connection.transport == Transport::Tcp
        && CHANNELS.into_iter().any(|channel| {
            TcpListener::bind(SocketAddr::new(LOOPBACK, connection.port(channel)))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Placeholder for the connection file's path.
    const FILE: &str = "/run/kernel.json";

    #[test]
    fn the_kernelspec_and_configuration_choose_the_transport() {
        for (choice, metadata, expected) in [
            (TransportChoice::Auto, None, Transport::Tcp),
            (TransportChoice::Auto, Some("ipc"), Transport::Ipc),
            (TransportChoice::Ipc, None, Transport::Ipc),
            (TransportChoice::Ipc, Some("tcp"), Transport::Tcp),
        ] {
            let mut spec = Kernelspec::default();
            if let Some(transport) = metadata {
                spec.metadata
                    .insert("kernelmux".into(), serde_json::json!({"transport": transport}));
            }
            let chosen = transport(choice, &spec, &["R".to_owned(), FILE.to_owned()], FILE);
            assert_eq!(chosen, expected, "{choice:?} {metadata:?}");
        }
    }

    #[test]
    fn only_the_plain_ipykernel_command_gets_unix_sockets() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, content: &[u8]| {
            let path = root.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let python = make("python3.11", b"\x7fELF...");
        std::os::unix::fs::symlink(&python, root.path().join("python")).unwrap();
        let link = root.path().join("python").to_str().unwrap().to_owned();
        let script = make("python3", b"#!/bin/sh\nexec ssh there python \"$@\"\n");
        let other = make("docker", b"\x7fELF...");
        let mount = format!("{FILE}:/x");
        let plain = ["-m", "ipykernel_launcher", "-f", FILE];
        let unbuffered = [&["-Xfrozen_modules=off"], &plain[..]].concat();
        let mounted = [&["run", "-v", &mount, "image", "python"], &plain[..]].concat();
        let elsewhere = [&plain[..], &["--ip=10.0.0.1"]].concat();
        let other_file = ["-m", "ipykernel_launcher", "-f", "/x"];
        for (program, arguments, expected) in [
            (&python, &plain[..], Transport::Ipc),
            (&link, &unbuffered, Transport::Ipc),
            (&python, &["-m", "ipykernel", "-f", FILE], Transport::Ipc),
            (&python, &["-m", "bash_kernel", "-f", FILE], Transport::Tcp),
            (&python, &elsewhere, Transport::Tcp),
            (&python, &mounted, Transport::Tcp),
            (&python, &other_file, Transport::Tcp),
            (&script, &plain, Transport::Tcp),
            (&other, &plain, Transport::Tcp),
            (&other, &mounted, Transport::Tcp),
            (&"python3".to_owned(), &plain, Transport::Tcp),
            (&"/nowhere/python3".to_owned(), &plain, Transport::Tcp),
        ] {
            let argv: Vec<String> = std::iter::once(program.as_str())
                .chain(arguments.iter().copied())
                .map(str::to_owned)
                .collect();
            let chosen = transport(TransportChoice::Auto, &Kernelspec::default(), &argv, FILE);
            assert_eq!(chosen, expected, "{argv:?}");
            let chosen = transport(TransportChoice::Tcp, &Kernelspec::default(), &argv, FILE);
            assert_eq!(chosen, Transport::Tcp);
        }
    }
}
