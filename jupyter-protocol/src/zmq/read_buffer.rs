//! Read buffer of a connection, which grows only as bytes arrive, regardless of the length that a frame claims.

use std::io;

use bytes::{Bytes, BytesMut};

use super::SocketError;
use super::memory::{MemoryReservation, MessageMemory};
use super::zmtp::{self, Decoder, Limits, Traffic, ZmtpError};

/// Smallest and largest number of bytes to request per read. The size adapts to the rate at which bytes arrive.
const MIN_READ: usize = 4 << 10;
const MAX_READ: usize = 64 << 10;

pub(super) struct ReadBuffer {
    buffer: BytesMut,
    decoder: Decoder,
    read_size: usize,
    reservation: MemoryReservation,
}

impl ReadBuffer {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            buffer: BytesMut::new(),
            decoder: Decoder::new(limits),
            read_size: MIN_READ,
            reservation: MemoryReservation::default(),
        }
    }

    /// Makes large messages reserve memory from a shared budget.
    pub(super) fn set_memory(&mut self, memory: &MessageMemory) {
        self.reservation.set_memory(memory);
    }

    /// Checks and consumes the peer's greeting. Returns `false` while it is incomplete.
    pub(super) fn take_greeting(&mut self) -> Result<bool, ZmtpError> {
        let is_complete = zmtp::check_greeting(&self.buffer)?;
        if is_complete {
            drop(self.buffer.split_to(zmtp::GREETING));
        }
        Ok(is_complete)
    }

    /// Returns the command that completes the peer's handshake, or `None` while it is incomplete.
    pub(super) fn take_handshake_command(&mut self) -> Result<Option<Bytes>, ZmtpError> {
        zmtp::check_is_command(&self.buffer)?;
        match self.decoder.decode(&mut self.buffer)? {
            Some(Traffic::Command(command)) => Ok(Some(command)),
            Some(Traffic::Message(_) | Traffic::Skipped(_)) => Err(ZmtpError::NotZmtp),
            None => Ok(None),
        }
    }

    /// Returns the next message or command that is complete.
    pub(super) fn next(&mut self) -> Result<Option<Traffic>, SocketError> {
        self.reservation.release_delivered();
        let next = self.decoder.decode(&mut self.buffer).map_err(SocketError::broken)?;
        if matches!(next, Some(Traffic::Message(_))) {
            self.reservation.mark_delivered();
        }
        Ok(next)
    }

    /// Returns the size of the message that is being received, as far as it is known.
    fn message_bytes(&self) -> u64 {
        self.decoder.message_bytes(self.buffer.len())
    }

    /// Returns whether memory is reserved for the message that is being received.
    pub(super) fn has_memory(&self) -> bool {
        self.reservation.covers(self.message_bytes())
    }

    /// Reserves memory for the message that is being received, or skips the message if there is none. Cancel-safe.
    pub(super) async fn reserve_memory(&mut self) -> Result<(), SocketError> {
        if !self.reservation.grow(self.message_bytes()).await {
            self.skip_message()?;
        }
        Ok(())
    }

    /// Waits until the message that is being received has to yield its memory to others. Cancel-safe.
    pub(super) async fn until_overdue(&mut self) {
        self.reservation.until_overdue().await;
    }

    /// Skips the message that is being received.
    fn skip_message(&mut self) -> Result<(), SocketError> {
        self.reservation.release();
        self.decoder.skip_message();
        // Discards the bytes that have arrived. The message cannot be complete, so there is no result to keep.
        self.decoder.decode(&mut self.buffer).map_err(SocketError::broken)?;
        self.release_if_empty();
        Ok(())
    }

    /// Reads once. Returns `false` if there was nothing to read.
    pub(super) fn read(
        &mut self,
        try_read: impl FnOnce(&mut BytesMut) -> io::Result<Option<usize>>,
    ) -> Result<bool, SocketError> {
        if self.reservation.is_overdue() {
            self.skip_message()?;
        }
        // For a large frame the buffer at most doubles: a claimed length must not cause a large allocation.
        let missing = self.decoder.missing().min(self.buffer.len());
        self.buffer.reserve(self.read_size.max(missing));
        let room = self.buffer.capacity() - self.buffer.len();
        match try_read(&mut self.buffer).map_err(SocketError::broken)? {
            Some(0) => Err(SocketError::Broken("the peer closed the connection".to_owned())),
            Some(read) => {
                if read == room {
                    self.read_size = (self.read_size * 4).min(MAX_READ);
                } else if read < self.read_size / 16 {
                    self.read_size = (self.read_size / 4).max(MIN_READ);
                }
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Frees an empty buffer, so that an idle connection holds no memory.
    pub(super) fn release_if_empty(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}
