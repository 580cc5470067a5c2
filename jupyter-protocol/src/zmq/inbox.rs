//! What was read of a connection. Room is made only for bytes that have come, whatever a length claims.

use std::io;

use bytes::{Bytes, BytesMut};

use super::SocketError;
use super::memory::{MessageMemory, Reservation};
use super::zmtp::{self, Decoder, Limits, Traffic, ZmtpError};

/// How many bytes are read at a time: at first, and when it is a flood.
const FEW: usize = 4 << 10;
const MANY: usize = 64 << 10;

pub(super) struct Inbox {
    buffer: BytesMut,
    decoder: Decoder,
    read_at_a_time: usize,
    reservation: Reservation,
}

impl Inbox {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            buffer: BytesMut::new(),
            decoder: Decoder::new(limits),
            read_at_a_time: FEW,
            reservation: Reservation::default(),
        }
    }

    /// Takes the memory for large messages from what others take theirs from.
    pub(super) fn share(&mut self, memory: &MessageMemory) {
        self.reservation.share(memory);
    }

    /// Takes the other side's greeting; whether it was all there.
    pub(super) fn greeting(&mut self) -> Result<bool, ZmtpError> {
        let whole = zmtp::check_greeting(&self.buffer)?;
        if whole {
            drop(self.buffer.split_to(zmtp::GREETING));
        }
        Ok(whole)
    }

    /// Takes the command that ends the other side's handshake, where it is there.
    pub(super) fn command(&mut self) -> Result<Option<Bytes>, ZmtpError> {
        zmtp::check_is_command(&self.buffer)?;
        match self.decoder.decode(&mut self.buffer)? {
            Some(Traffic::Command(command)) => Ok(Some(command)),
            Some(Traffic::Message(_) | Traffic::LeftOut(_)) => Err(ZmtpError::NotZmtp),
            None => Ok(None),
        }
    }

    /// The next message or command that is there.
    pub(super) fn next(&mut self) -> Result<Option<Traffic>, SocketError> {
        self.reservation.next();
        let next = self.decoder.decode(&mut self.buffer).map_err(SocketError::broken)?;
        if matches!(next, Some(Traffic::Message(_))) {
            self.reservation.received();
        }
        Ok(next)
    }

    /// How many bytes the message that is being received has, as far as that is known.
    fn message_bytes(&self) -> u64 {
        self.decoder.message_bytes(self.buffer.len())
    }

    /// Whether there is memory for the message that is being received.
    pub(super) fn has_memory(&self) -> bool {
        self.reservation.covers(self.message_bytes())
    }

    /// Waits for memory for the message that is being received, and passes it over where there is none. Cancel-safe.
    pub(super) async fn memory(&mut self) -> Result<(), SocketError> {
        if !self.reservation.grow(self.message_bytes()).await {
            self.leave_out()?;
        }
        Ok(())
    }

    /// Waits until others need the memory of the message that is being received more. Cancel-safe.
    pub(super) async fn overdue(&mut self) {
        self.reservation.overdue().await;
    }

    /// Passes over the message that is being received.
    fn leave_out(&mut self) -> Result<(), SocketError> {
        self.reservation.release();
        self.decoder.leave_out();
        // Takes what is there of it off the buffer. Whole it cannot be.
        self.decoder.decode(&mut self.buffer).map_err(SocketError::broken)?;
        self.rest();
        Ok(())
    }

    /// Reads once; whether there was something.
    pub(super) fn read(
        &mut self,
        try_read: impl FnOnce(&mut BytesMut) -> io::Result<Option<usize>>,
    ) -> Result<bool, SocketError> {
        if self.reservation.is_overdue() {
            self.leave_out()?;
        }
        // Of a large frame no more is made room for than as much again as has come.
        let missing = self.decoder.missing().min(self.buffer.len());
        self.buffer.reserve(self.read_at_a_time.max(missing));
        let room = self.buffer.capacity() - self.buffer.len();
        match try_read(&mut self.buffer).map_err(SocketError::broken)? {
            Some(0) => Err(SocketError::Broken("the other side closed it".to_owned())),
            Some(read) => {
                if read == room {
                    self.read_at_a_time = (self.read_at_a_time * 4).min(MANY);
                } else if read < self.read_at_a_time / 16 {
                    self.read_at_a_time = (self.read_at_a_time / 4).max(FEW);
                }
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Before something to read is waited for: while nothing comes no memory is held.
    pub(super) fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}
