//! A message as its frames, nothing parsed.

use bytes::Bytes;

use crate::header::{HeaderError, HeaderRef};
use crate::signing::Signer;

/// The frame between a message's identities and its signature.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";

/// How many frames a message may have, identities and buffers together.
pub const MAX_FRAMES: usize = 65_536;

/// The frames are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// No `<IDS|MSG>` frame.
    #[error("no <IDS|MSG> frame among {frames} frames: not a Jupyter message")]
    NoDelimiter {
        /// How many frames there were.
        frames: usize,
    },
    /// Fewer than the signature and four parts after the delimiter.
    #[error(
        "{parts} frames after <IDS|MSG>, where a message has at least five (signature, header, parent_header, metadata, content)"
    )]
    TooShort {
        /// How many frames there were after the delimiter.
        parts: usize,
    },
    /// More bytes than a socket takes. They were passed over.
    #[error("a message of {bytes} bytes, where one may have {most}, was left out")]
    TooLarge {
        /// How many bytes it had.
        bytes: u64,
        /// How many it may have.
        most: u64,
    },
    /// There was no memory for it, since large messages of other sockets had all of it. It was passed over.
    #[error("a message of {bytes} bytes was left out: there was no memory for it beside other large messages")]
    NoMemory {
        /// How many bytes it had.
        bytes: u64,
    },
    /// More frames than [`MAX_FRAMES`].
    #[error("{frames} frames, where a message may have {MAX_FRAMES}")]
    TooManyFrames {
        /// How many frames there were.
        frames: usize,
    },
    /// The signature is not the one of these frames: another key, or an altered message.
    #[error("the signature does not match the message: check that both sides use the same connection file")]
    BadSignature,
    /// A message with this signature has been received before.
    #[error("a message with this signature was received before: replay refused")]
    Replayed,
}

/// A message as it stands on the wire: identities, `<IDS|MSG>`, signature, header, parent header, metadata, content
/// and buffers, each the frame as it came.
///
/// Nothing is parsed or copied: to pass a message on costs what counting its frames' references costs.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireMessage {
    frames: Vec<Bytes>,
    delimiter: usize,
}

impl WireMessage {
    /// Takes the frames of one multipart message, without verifying the signature.
    ///
    /// # Errors
    /// [`WireError::NoDelimiter`], [`WireError::TooShort`] and [`WireError::TooManyFrames`] where it is no message.
    pub fn from_frames(frames: Vec<Bytes>) -> Result<Self, WireError> {
        if frames.len() > MAX_FRAMES {
            return Err(WireError::TooManyFrames { frames: frames.len() });
        }
        let delimiter = frames
            .iter()
            .position(|frame| frame == DELIMITER)
            .ok_or(WireError::NoDelimiter { frames: frames.len() })?;
        let parts = frames.len() - delimiter - 1;
        if parts < 5 {
            return Err(WireError::TooShort { parts });
        }
        Ok(Self { frames, delimiter })
    }

    /// A message of these parts (header, parent header, metadata, content: each a JSON object), unsigned and without
    /// identities.
    #[must_use]
    pub fn from_parts(parts: [Bytes; 4], buffers: impl IntoIterator<Item = Bytes>) -> Self {
        let buffers = buffers.into_iter();
        let mut frames = Vec::with_capacity(6 + buffers.size_hint().0);
        frames.push(Bytes::from_static(DELIMITER));
        frames.push(Bytes::new());
        frames.extend(parts);
        frames.extend(buffers);
        Self { frames, delimiter: 0 }
    }

    /// Checks the signature over the frames as they are.
    ///
    /// # Errors
    /// [`WireError::BadSignature`] where it is another message's or was made with another key.
    pub fn verify(&self, signer: &Signer) -> Result<(), WireError> {
        if signer.verify(self.signature(), self.parts().map(|part| &**part)) {
            Ok(())
        } else {
            Err(WireError::BadSignature)
        }
    }

    /// The same message signed with another key: one whose frames came from a client without a key, say.
    #[must_use]
    pub fn signed(mut self, signer: &Signer) -> Self {
        let signature = signer.sign(self.parts().map(|part| &**part));
        self.frames[self.delimiter + 1] = Bytes::copy_from_slice(signature.as_bytes());
        self
    }

    /// The same message with these identities in front of it, as a ROUTER socket wants them.
    #[must_use]
    pub fn with_identities(mut self, identities: impl IntoIterator<Item = Bytes>) -> Self {
        let before = self.frames.len();
        let old = self.delimiter;
        self.frames.splice(..old, identities);
        self.delimiter = self.frames.len() + old - before;
        self
    }

    /// All frames in order, to be sent as one multipart message.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        self.frames
    }

    /// The frames before the delimiter: routing identities, or the topic on iopub.
    #[must_use]
    pub fn identities(&self) -> &[Bytes] {
        &self.frames[..self.delimiter]
    }

    /// The signature's hex digits; empty where unsigned.
    #[must_use]
    pub fn signature(&self) -> &Bytes {
        &self.frames[self.delimiter + 1]
    }

    /// The header's JSON.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.frames[self.delimiter + 2]
    }

    /// The parent header's JSON, `{}` where there is none.
    #[must_use]
    pub fn parent_header(&self) -> &Bytes {
        &self.frames[self.delimiter + 3]
    }

    /// The metadata's JSON.
    #[must_use]
    pub fn metadata(&self) -> &Bytes {
        &self.frames[self.delimiter + 4]
    }

    /// The content's JSON.
    #[must_use]
    pub fn content(&self) -> &Bytes {
        &self.frames[self.delimiter + 5]
    }

    /// Header, parent header, metadata and content: what the signature covers.
    #[must_use]
    pub fn parts(&self) -> [&Bytes; 4] {
        [self.header(), self.parent_header(), self.metadata(), self.content()]
    }

    /// The binary buffers after the content.
    #[must_use]
    pub fn buffers(&self) -> &[Bytes] {
        &self.frames[self.delimiter + 6..]
    }

    /// Header, parent header, metadata, content and buffers in order.
    #[must_use]
    pub fn parts_and_buffers(&self) -> &[Bytes] {
        &self.frames[self.delimiter + 2..]
    }

    /// The header, borrowed from its frame.
    ///
    /// # Errors
    /// [`HeaderError`] where the frame is no JSON object.
    pub fn header_ref(&self) -> Result<HeaderRef<'_>, HeaderError> {
        HeaderRef::parse(self.header())
    }

    /// The parent's header, borrowed from its frame; its fields are empty where there is no parent.
    ///
    /// # Errors
    /// [`HeaderError`] where the frame is no JSON object.
    pub fn parent_ref(&self) -> Result<HeaderRef<'_>, HeaderError> {
        HeaderRef::parse(self.parent_header())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(list: &[&'static str]) -> Vec<Bytes> {
        list.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect()
    }

    #[test]
    fn short_and_foreign_frames_are_typed_errors() {
        assert_eq!(
            WireMessage::from_frames(vec![]),
            Err(WireError::NoDelimiter { frames: 0 })
        );
        assert_eq!(
            WireMessage::from_frames(frames(&["a", "b"])),
            Err(WireError::NoDelimiter { frames: 2 })
        );
        assert_eq!(
            WireMessage::from_frames(frames(&["<IDS|MSG>", "", "{}", "{}", "{}"])),
            Err(WireError::TooShort { parts: 4 })
        );
        let many = vec![Bytes::from_static(DELIMITER); MAX_FRAMES + 1];
        assert_eq!(
            WireMessage::from_frames(many),
            Err(WireError::TooManyFrames { frames: MAX_FRAMES + 1 })
        );
    }

    #[test]
    fn identities_change_and_the_rest_stays() {
        let message =
            WireMessage::from_frames(frames(&["id", "<IDS|MSG>", "", "{1", "{2", "{3", "{4", "buf"])).unwrap();
        assert_eq!(message.identities(), &frames(&["id"])[..]);
        let message = message.with_identities(frames(&["x", "y"]));
        assert_eq!(message.identities(), &frames(&["x", "y"])[..]);
        assert_eq!(message.header(), "{1");
        assert_eq!(message.buffers(), &frames(&["buf"])[..]);
        let message = message.with_identities([]);
        assert!(message.identities().is_empty());
        assert_eq!(message.content(), "{4");
    }

    #[test]
    fn another_key_does_not_verify() {
        let signer = Signer::new("hmac-sha256", b"key").unwrap();
        let other = Signer::new("hmac-sha256", b"other").unwrap();
        let message = WireMessage::from_frames(frames(&["<IDS|MSG>", "", "{}", "{}", "{}", "{}"]))
            .unwrap()
            .signed(&signer);
        assert_eq!(message.verify(&signer), Ok(()));
        assert_eq!(message.verify(&other), Err(WireError::BadSignature));
    }
}
