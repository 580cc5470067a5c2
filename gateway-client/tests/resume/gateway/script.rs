//! The faults of the scripted gateway.

use gateway_client::resume::Hello;

/// Faults of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// Refuses the connection in place of all other faults.
    pub(crate) refuse: Option<Refuse>,
    /// Breaks the connection after the gateway has written this many bytes, including the handshake.
    pub(crate) cut_after_written: Option<usize>,
    /// Breaks the connection after the gateway has read this many bytes.
    pub(crate) cut_after_read: Option<usize>,
    /// A fault at the frame with this number; the `hello` is frame 0.
    pub(crate) fault: Option<(usize, Fault)>,
    /// Size of the connection's buffer in bytes; 0 stands for 64 KiB.
    pub(crate) window: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Refuse {
    /// The connection is refused.
    Unreachable,
    /// The gateway accepts the connection and never answers.
    Mute,
    /// The gateway answers with this status.
    Status(u16),
    /// The gateway accepts the WebSocket without the subprotocol.
    Plain,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Ends the connection without a Close frame, in place of the frame.
    Cut,
    /// Sends a Close frame with this code, in place of the frame.
    Close(Option<u16>),
    /// Sends the frame twice.
    Twice,
    /// Sends the next frame first.
    Swapped,
    /// Omits the frame.
    Missing,
    /// Sends this binary frame before the frame.
    Binary(&'static [u8]),
    /// Sends this text frame before the frame.
    Text(&'static str),
    /// Sends this `hello` before the frame.
    Hello(Hello),
    /// Sends nothing more, not even Pings, and keeps the connection open.
    Silence,
}

pub(crate) fn faulty(frame: usize, fault: Fault) -> Script {
    Script {
        fault: Some((frame, fault)),
        ..Script::default()
    }
}
