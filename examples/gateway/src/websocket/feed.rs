use std::sync::Arc;

use gateway_client::resume::{Hello, Notice, Start};
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Block, Log, ReadError, Reader, Seq};
use kernel_manager::{Attachment, Client, Kernel};

use super::format::Format;

/// The source of a connection's entries.
pub(super) enum Feed {
    /// A kernel.
    Kernel(Attachment),
    /// The log of a past kernel.
    Log(Reader),
}

impl Feed {
    /// The feed of a client that tracks its own position; `kernel` is `None` if it is gone. Also returns the first
    /// frame, which contains the client's position.
    pub(super) fn resume(log: &Log, kernel: Option<&Arc<Kernel>>, session: &str, start: Start) -> (Self, Notice) {
        let (epoch, earliest, head) = (log.epoch(), log.earliest(), log.head());
        let found = start.find(epoch, earliest, head);
        let feed = match kernel {
            Some(kernel) => Self::Kernel(kernel.attach_at(session, found.from)),
            None => Self::Log(log.reader(found.from)),
        };
        let hello = Hello {
            epoch,
            earliest,
            head,
            from: found.from,
            recovered: found.not_recovered.is_none(),
            reason: found.not_recovered,
        };
        (feed, Notice::Hello(hello))
    }

    pub(super) fn client(&self) -> Option<Client> {
        match self {
            Self::Kernel(attachment) => Some(attachment.client()),
            Self::Log(_) => None,
        }
    }

    /// The last entry that was read, or the start position.
    pub(super) fn position(&self) -> Seq {
        match self {
            Self::Kernel(attachment) => attachment.position(),
            Self::Log(reader) => reader.position(),
        }
    }

    /// The next messages to replay to a client that may have received them only partly.
    pub(super) async fn replay(&mut self) -> Option<Result<Vec<(Channel, WireMessage)>, ReadError>> {
        match self {
            Self::Kernel(attachment) => attachment.replay().await,
            Self::Log(_) => None,
        }
    }

    /// Messages that replay an execution on request. Empty for clients of the resume protocol, because they receive all
    /// entries. Only clients of the resume protocol can read the log of an ended kernel.
    pub(super) async fn follow(&self, request: &WireMessage, format: Format) -> Vec<(Channel, WireMessage)> {
        match self {
            Self::Kernel(attachment) if format != Format::Resume => attachment.follow(request).await,
            Self::Kernel(_) | Self::Log(_) => Vec::new(),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        match self {
            Self::Kernel(attachment) => attachment.next().await,
            Self::Log(reader) => reader.next().await,
        }
    }

    pub(super) fn recent(&mut self) -> Result<Option<Block>, ReadError> {
        match self {
            Self::Kernel(attachment) => attachment.recent(),
            Self::Log(reader) => reader.recent(),
        }
    }

    /// Waits until another connection replaces this one.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let superseded = match self {
            Self::Kernel(attachment) => Some(attachment.superseded()),
            Self::Log(_) => None,
        };
        async {
            match superseded {
                Some(superseded) => superseded.await,
                None => std::future::pending().await,
            }
        }
    }
}
