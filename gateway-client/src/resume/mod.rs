//! The resume protocol, with which a client follows a kernel's log over a WebSocket and resumes at the next entry after
//! a disconnect. `docs/src/resume-protocol.md` specifies the protocol byte by byte.

#[cfg(feature = "client")]
pub mod client;
mod protocol;

pub use protocol::{
    CLOSE_REPLACED, Hello, InvalidStart, NotRecovered, Notice, SUBPROTOCOL, Start, StartPoint, decode_entry,
};
