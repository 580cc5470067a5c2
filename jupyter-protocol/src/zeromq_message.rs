//! Conversions between [`WireMessage`] and [`ZmqMessage`]. Neither copies a frame.

use zeromq::ZmqMessage;

use crate::wire::{WireError, WireMessage};

impl From<WireMessage> for ZmqMessage {
    /// Moves all frames, identities first. A ROUTER socket of `zeromq` sends to the peer that the first frame
    /// identifies.
    ///
    /// ```
    /// use jupyter_protocol::content::KernelInfoRequest;
    /// use jupyter_protocol::zeromq::{Socket, SocketRecv, SocketSend, DealerSocket};
    /// use jupyter_protocol::{Channel, ConnectionInfo, Message, WireMessage};
    ///
    /// async fn kernel_info(info: &ConnectionInfo) -> Result<Message, Box<dyn std::error::Error>> {
    ///     let signer = info.signer()?;
    ///     let mut shell = DealerSocket::new();
    ///     shell.connect(&info.address(Channel::Shell)).await?;
    ///     let request = Message::new(KernelInfoRequest::default(), "session");
    ///     shell.send(request.to_wire().signed(&signer).into()).await?;
    ///     let reply = WireMessage::try_from(shell.recv().await?)?;
    ///     reply.verify(&signer)?;
    ///     Ok(Message::from_wire(&reply)?)
    /// }
    /// ```
    fn from(message: WireMessage) -> Self {
        let mut frames = message.into_frames().into_iter();
        // `ZmqMessage` is created from its first frame. There always is one, because each message has a delimiter.
        let mut converted = Self::from(frames.next().unwrap_or_default());
        frames.for_each(|frame| converted.push_back(frame));
        converted
    }
}

impl TryFrom<ZmqMessage> for WireMessage {
    type Error = WireError;

    /// Moves all frames, with the errors of [`WireMessage::from_frames`]. The signature is not verified.
    fn try_from(message: ZmqMessage) -> Result<Self, WireError> {
        Self::from_frames(message.into_vec())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_message_keeps_identities_buffers_and_order() {
        let message = WireMessage::from_parts(["{1", "{2", "{3", "{4"].map(Bytes::from), ["a", "b"].map(Bytes::from))
            .with_identities(["client", ""].map(Bytes::from));
        let converted = ZmqMessage::from(message.clone());
        let frames: Vec<_> = converted.iter().map(|frame| &**frame).collect();
        let expected = ["client", "", "<IDS|MSG>", "", "{1", "{2", "{3", "{4", "a", "b"];
        assert_eq!(frames, expected.map(str::as_bytes));
        assert_eq!(WireMessage::try_from(converted), Ok(message));
    }

    #[test]
    fn a_message_of_another_protocol_is_a_typed_error() {
        let heartbeat = ZmqMessage::from("ping");
        assert_eq!(
            WireMessage::try_from(heartbeat),
            Err(WireError::NoDelimiter { frames: 1 })
        );
        let short = ZmqMessage::try_from(vec![Bytes::from("<IDS|MSG>"), Bytes::new()]).unwrap();
        assert_eq!(WireMessage::try_from(short), Err(WireError::TooShort { parts: 1 }));
    }
}
