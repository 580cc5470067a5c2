//! TCP ports for kernels.
//!
//! Two programs must not get the same port, but a kernel binds its ports some time after it was given them. So each
//! port stays bound here, without listening, until the kernel accepts connections. While a port is bound, the system
//! does not assign it to another program that requests any free port. The kernel can still bind it, because ZeroMQ sets
//! `SO_REUSEADDR`. A kernel that cannot bind its ports fails, and is started again with ports that are not kept bound.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use jupyter_protocol::{ConnectionInfo, Transport};
use tokio::net::TcpSocket;
use uuid::Uuid;

use crate::endpoints::CHANNELS;

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Allocates ports to kernels.
pub(crate) struct PortAllocator {
    /// `None` lets the system choose.
    range: Option<RangeInclusive<u16>>,
    /// Ports of kernels that are being started. Needed for a range, because two sockets that are bound, but do not
    /// listen, can have the same port.
    reserved: Arc<Mutex<HashSet<u16>>>,
}

/// Ports that stay reserved until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct PortReservation {
    sockets: Vec<TcpSocket>,
    reserved: Vec<ReservedPort>,
}

/// A port that the provider gives to no other kernel.
#[derive(Debug)]
struct ReservedPort {
    port: u16,
    all: Arc<Mutex<HashSet<u16>>>,
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        crate::lock(&self.all).remove(&self.port);
    }
}

impl PortReservation {
    /// Unbinds the ports. They stay reserved within this provider.
    pub(crate) fn without_sockets(mut self) -> Self {
        self.sockets.clear();
        self
    }
}

impl PortAllocator {
    pub(crate) fn new(range: Option<RangeInclusive<u16>>) -> Self {
        Self {
            range,
            reserved: Arc::default(),
        }
    }

    /// Reserves five free ports for the connection. Ports that it already has are kept if they are free.
    ///
    /// # Errors
    /// [`io::Error`] if there are not enough free ports, or the system refuses a socket.
    pub(crate) fn reserve_ports(&self, connection: &mut ConnectionInfo) -> io::Result<PortReservation> {
        connection.transport = Transport::Tcp;
        connection.ip = LOOPBACK.to_string();
        let mut reservation = PortReservation::default();
        for channel in CHANNELS {
            let (socket, reserved) = match connection.port(channel) {
                0 => self.any_port()?,
                port => self.bind_and_reserve(port).or_else(|_| self.any_port())?,
            };
            connection.set_port(channel, reserved.port);
            reservation.sockets.push(socket);
            reservation.reserved.push(reserved);
        }
        Ok(reservation)
    }

    fn any_port(&self) -> io::Result<(TcpSocket, ReservedPort)> {
        let Some(range) = self.range.clone() else {
            return self.any_system_port();
        };
        // Start at a random port, so that an ended kernel's ports are not reused immediately.
        let count = usize::from(range.end() - range.start()) + 1;
        let start = usize::from(Uuid::new_v4().as_u128() as u16) % count;
        let mut ports = range.clone().cycle().skip(start).take(count);
        ports.find_map(|port| self.bind_and_reserve(port).ok()).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("all ports from {low} to {high} are in use; end kernels, or widen the range"),
            )
        })
    }

    /// Reserves a port chosen by the system. If the system chooses a port that is already reserved, that port stays
    /// bound during the search, so that the system does not choose it again.
    fn any_system_port(&self) -> io::Result<(TcpSocket, ReservedPort)> {
        let mut already_reserved = Vec::new();
        loop {
            let socket = bound(0)?;
            let port = socket.local_addr()?.port();
            match self.reserve(port) {
                Some(reservation) => return Ok((socket, reservation)),
                None => already_reserved.push(socket),
            }
        }
    }

    fn bind_and_reserve(&self, port: u16) -> io::Result<(TcpSocket, ReservedPort)> {
        let socket = bound(port)?;
        let reservation = self.reserve(port).ok_or(io::ErrorKind::AddrInUse)?;
        Ok((socket, reservation))
    }

    /// Returns `None` if the port is already reserved.
    fn reserve(&self, port: u16) -> Option<ReservedPort> {
        let all = Arc::clone(&self.reserved);
        let is_new = crate::lock(&all).insert(port);
        // Only constructed for a new reservation, because dropping it ends the reservation.
        is_new.then(|| ReservedPort { port, all })
    }
}

/// Binds a socket to the port, or to any port for 0, without listening.
fn bound(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(LOOPBACK, port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;

    use super::*;
    use crate::endpoints::is_any_taken;

    fn ports_of(connection: &ConnectionInfo) -> BTreeSet<u16> {
        CHANNELS.map(|channel| connection.port(channel)).into()
    }

    #[tokio::test]
    async fn reserved_ports_are_distinct_and_can_be_listened_on() {
        let ports = PortAllocator::new(None);
        let mut connection = ConnectionInfo::default();
        let reservation = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(ports_of(&connection).len(), 5);
        for port in ports_of(&connection) {
            // Kernels do the same: std sets `SO_REUSEADDR` on listeners, like ZeroMQ.
            drop(TcpListener::bind((LOOPBACK, port)).unwrap());
        }
        assert!(!is_any_taken(&connection));
        drop(reservation);
        let again = connection.clone();
        let _held = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(connection, again);
    }

    #[tokio::test]
    async fn ports_in_use_are_detected_and_replaced() {
        let ports = PortAllocator::new(None);
        let mut connection = ConnectionInfo::default();
        drop(ports.reserve_ports(&mut connection).unwrap());
        let before = connection.clone();
        let _other = TcpListener::bind((LOOPBACK, connection.iopub_port)).unwrap();
        assert!(is_any_taken(&connection));
        let _held = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(connection.shell_port, before.shell_port);
        assert_ne!(connection.iopub_port, before.iopub_port);
    }

    #[tokio::test]
    async fn kernels_share_a_range_until_it_is_exhausted() {
        // Use ports that the system has just assigned, because they are free.
        let mut connection = ConnectionInfo::default();
        drop(PortAllocator::new(None).reserve_ports(&mut connection).unwrap());
        let low = *ports_of(&connection).first().unwrap();
        let ports = PortAllocator::new(Some(low..=low.saturating_add(500)));
        let mut taken = BTreeSet::new();
        let mut reservation = Vec::new();
        let error = loop {
            let mut connection = ConnectionInfo::default();
            match ports.reserve_ports(&mut connection) {
                // Ports stay reserved even when they are not bound.
                Ok(ports) => reservation.push(ports.without_sockets()),
                Err(error) => break error,
            }
            for port in ports_of(&connection) {
                assert!(port >= low && port - low <= 500 && taken.insert(port), "{port}");
            }
        };
        assert!(error.to_string().contains(&low.to_string()), "{error}");
        assert!(taken.len() > 5);
        // Other programs may have taken some ports meanwhile.
        reservation.clear();
        ports.reserve_ports(&mut ConnectionInfo::default()).unwrap();
    }
}
