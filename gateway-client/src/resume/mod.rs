//! The resume protocol: how a client follows a kernel's log over a WebSocket and, after a disconnect, goes on with the
//! very next entry. `docs/resume-protocol.md` has it byte by byte.

#[cfg(feature = "client")]
pub mod client;
mod protocol;

pub use protocol::{
    CLOSE_REPLACED, Hello, InvalidStart, NotRecovered, Notice, SUBPROTOCOL, Start, StartPoint, decode_entry,
};
