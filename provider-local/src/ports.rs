//! TCP ports for kernels.
//!
//! Two programs must not get the same port, and a kernel binds its ports only some time after it was told which. So
//! each port is reservation, bound but not listening, until the kernel listens on it: as long as it is reservation, the system gives
//! it to nobody who asks for any port, and the kernel, which as all of ZeroMQ sets `SO_REUSEADDR`, can bind it all the
//! same. A kernel that cannot fails, and is started again with ports that are not reservation.

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

/// The ports that kernels may have.
pub(crate) struct PortAllocator {
    /// `None`: the system chooses.
    range: Option<RangeInclusive<u16>>,
    /// Those of kernels that are being started. Two sockets that are only reservation may have the same port of a range.
    reserved: Arc<Mutex<HashSet<u16>>>,
}

/// PortAllocator that are reservation until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct PortReservation {
    sockets: Vec<TcpSocket>,
    reserved: Vec<ReservedPort>,
}

/// A port that no other kernel of the provider gets.
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
    /// Lets others bind the ports. No other kernel of the provider gets them all the same.
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

    /// Gives the connection five ports that nobody has, and holds them. PortAllocator that it has already are kept if they are
    /// free.
    ///
    /// # Errors
    /// Where there is no port left.
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
        // From anywhere on, so that the ports of a kernel that has just ended are not the next one's.
        let count = usize::from(range.end() - range.start()) + 1;
        let start = usize::from(Uuid::new_v4().as_u128() as u16) % count;
        let mut ports = range.clone().cycle().skip(start).take(count);
        ports.find_map(|port| self.bind_and_reserve(port).ok()).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("all from {low} to {high} are taken; end kernels, or widen the range"),
            )
        })
    }

    /// A port that the system chooses. Where that is reserved and not reservation, it is reservation until there is another.
    fn any_system_port(&self) -> io::Result<(TcpSocket, ReservedPort)> {
        let mut refused = Vec::new();
        loop {
            let socket = bound(0)?;
            let port = socket.local_addr()?.port();
            match self.reserve(port) {
                Some(reservation) => return Ok((socket, reservation)),
                None => refused.push(socket),
            }
        }
    }

    fn bind_and_reserve(&self, port: u16) -> io::Result<(TcpSocket, ReservedPort)> {
        let socket = bound(port)?;
        let reservation = self.reserve(port).ok_or(io::ErrorKind::AddrInUse)?;
        Ok((socket, reservation))
    }

    /// `None` where the port is reserved already.
    fn reserve(&self, port: u16) -> Option<ReservedPort> {
        let all = Arc::clone(&self.reserved);
        let is_new = crate::lock(&all).insert(port);
        // Not made where it is not new: dropping it would end the other one.
        is_new.then(|| ReservedPort { port, all })
    }
}

/// A socket that has the port and does not listen; 0 for any port.
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
    async fn held_ports_are_distinct_go_to_nobody_else_and_can_be_listened_on() {
        let ports = PortAllocator::new(None);
        let mut connection = ConnectionInfo::default();
        let reservation = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(ports_of(&connection).len(), 5);
        for port in ports_of(&connection) {
            // What a kernel does: std sets SO_REUSEADDR on listeners, as ZeroMQ does.
            drop(TcpListener::bind((LOOPBACK, port)).unwrap());
        }
        assert!(!is_any_taken(&connection));
        drop(reservation);
        let again = connection.clone();
        let _held = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(connection, again);
    }

    #[tokio::test]
    async fn taken_ports_are_seen_and_passed_over() {
        let ports = PortAllocator::new(None);
        let mut connection = ConnectionInfo::default();
        drop(ports.reserve_ports(&mut connection).unwrap());
        let before = connection.clone();
        let _thief = TcpListener::bind((LOOPBACK, connection.iopub_port)).unwrap();
        assert!(is_any_taken(&connection));
        let _held = ports.reserve_ports(&mut connection).unwrap();
        assert_eq!(connection.shell_port, before.shell_port);
        assert_ne!(connection.iopub_port, before.iopub_port);
    }

    #[tokio::test]
    async fn kernels_share_a_range_until_it_is_used_up() {
        // Free ports of this machine: those that the system has just given.
        let mut connection = ConnectionInfo::default();
        drop(PortAllocator::new(None).reserve_ports(&mut connection).unwrap());
        let low = *ports_of(&connection).first().unwrap();
        let ports = PortAllocator::new(Some(low..=low.saturating_add(500)));
        let mut taken = BTreeSet::new();
        let mut reservation = Vec::new();
        let error = loop {
            let mut connection = ConnectionInfo::default();
            match ports.reserve_ports(&mut connection) {
                // They are nobody else's, whether they are reservation or not.
                Ok(ports) => reservation.push(ports.without_sockets()),
                Err(error) => break error,
            }
            for port in ports_of(&connection) {
                assert!(port >= low && port - low <= 500 && taken.insert(port), "{port}");
            }
        };
        assert!(error.to_string().contains(&low.to_string()), "{error}");
        assert!(taken.len() > 5);
        // Some may have been given to other programs meanwhile.
        reservation.clear();
        ports.reserve_ports(&mut ConnectionInfo::default()).unwrap();
    }
}
