//! What was read of a connection. Room is made only for bytes that have come, whatever a length claims.

use std::io;

use bytes::{Bytes, BytesMut};

use super::SocketError;
use super::zmtp::{self, Decoder, Limits, Traffic, ZmtpError};

/// How many bytes are read at a time: at first, and when it is a flood.
const FEW: usize = 4 << 10;
const MANY: usize = 64 << 10;

pub(super) struct Inbox {
    buffer: BytesMut,
    decoder: Decoder,
    read_at_a_time: usize,
}

impl Inbox {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            buffer: BytesMut::new(),
            decoder: Decoder::new(limits),
            read_at_a_time: FEW,
        }
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
            Some(Traffic::Message(_) | Traffic::TooLarge(_)) => Err(ZmtpError::NotZmtp),
            None => Ok(None),
        }
    }

    /// The next message or command that is there.
    pub(super) fn next(&mut self) -> Result<Option<Traffic>, SocketError> {
        self.decoder.decode(&mut self.buffer).map_err(SocketError::broken)
    }

    /// Reads once; whether there was something.
    pub(super) fn read(
        &mut self,
        try_read: impl FnOnce(&mut BytesMut) -> io::Result<Option<usize>>,
    ) -> Result<bool, SocketError> {
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
