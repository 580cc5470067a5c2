//! Messages as unparsed frames.

use bytes::Bytes;

use crate::header::{HeaderError, HeaderRef};
use crate::signing::Signer;

/// Frame that separates a message's identities from its signature.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";

/// Maximum number of frames of a message, including identities and buffers.
pub const MAX_FRAMES: usize = 65_536;

/// Error of a message that is invalid or was skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// There is no `<IDS|MSG>` frame.
    #[error("no <IDS|MSG> frame among {frames} frames: not a Jupyter message")]
    NoDelimiter {
        /// Number of frames.
        frames: usize,
    },
    /// Frames are missing after the delimiter: a message has a signature and four parts.
    #[error(
        "{parts} frames after <IDS|MSG>, expected at least five (signature, header, parent_header, metadata, content)"
    )]
    TooShort {
        /// Number of frames after the delimiter.
        parts: usize,
    },
    /// The message exceeds the size limit of the socket and was skipped.
    #[error("skipped a message of {bytes} bytes: the limit is {limit} bytes")]
    TooLarge {
        /// Size of the message in bytes.
        bytes: u64,
        /// Maximum size in bytes.
        limit: u64,
    },
    /// The message was skipped because the budget for large messages had no memory for it.
    #[error("skipped a message of {bytes} bytes: no memory left for large messages")]
    NoMemory {
        /// Size of the message in bytes.
        bytes: u64,
    },
    /// The message has more frames than [`MAX_FRAMES`].
    #[error("a message of {frames} frames: the limit is {MAX_FRAMES}")]
    TooManyFrames {
        /// Number of frames.
        frames: usize,
    },
    /// The signature does not match: the message was signed with another key or altered.
    #[error("the signature does not match the message: check that both sides use the same connection file")]
    BadSignature,
    /// A message with this signature was received before.
    #[error("replay: a message with this signature was received before")]
    Replayed,
}

/// A message in its wire format: identities, `<IDS|MSG>`, signature, header, parent header, metadata, content and
/// buffers, each as received.
///
/// Nothing is parsed. Cloning or forwarding a message does not copy the contents of its frames.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireMessage {
    frames: Vec<Bytes>,
    delimiter: usize,
}

impl WireMessage {
    /// Creates a message from the frames of one multipart message, without verifying the signature.
    ///
    /// # Errors
    /// - [`WireError::NoDelimiter`] if there is no `<IDS|MSG>` frame.
    /// - [`WireError::TooShort`] if fewer than five frames follow the delimiter.
    /// - [`WireError::TooManyFrames`] if there are more than [`MAX_FRAMES`] frames.
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

    /// Creates an unsigned message without identities.
    ///
    /// The parts are header, parent header, metadata and content, each a JSON object.
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

    /// Verifies the signature over the frames as received.
    ///
    /// # Errors
    /// [`WireError::BadSignature`] if the message was signed with another key or altered.
    pub fn verify(&self, signer: &Signer) -> Result<(), WireError> {
        if signer.verify(self.signature(), self.parts().map(|part| &**part)) {
            Ok(())
        } else {
            Err(WireError::BadSignature)
        }
    }

    /// Signs the message, replacing any signature that it has.
    #[must_use]
    pub fn signed(mut self, signer: &Signer) -> Self {
        let signature = signer.sign(self.parts().map(|part| &**part));
        self.frames[self.delimiter + 1] = Bytes::copy_from_slice(signature.as_bytes());
        self
    }

    /// Replaces the identities in front of the message, by which a ROUTER socket addresses its peer.
    #[must_use]
    pub fn with_identities(mut self, identities: impl IntoIterator<Item = Bytes>) -> Self {
        let before = self.frames.len();
        let old = self.delimiter;
        self.frames.splice(..old, identities);
        self.delimiter = self.frames.len() + old - before;
        self
    }

    /// Returns all frames in order, to be sent as one multipart message.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        self.frames
    }

    /// Returns the frames before the delimiter: routing identities, or the topic on iopub.
    #[must_use]
    pub fn identities(&self) -> &[Bytes] {
        &self.frames[..self.delimiter]
    }

    /// Returns the hex digits of the signature, empty if the message is unsigned.
    #[must_use]
    pub fn signature(&self) -> &Bytes {
        &self.frames[self.delimiter + 1]
    }

    /// Returns the header as JSON.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.frames[self.delimiter + 2]
    }

    /// Returns the parent header as JSON, `{}` if there is no parent.
    #[must_use]
    pub fn parent_header(&self) -> &Bytes {
        &self.frames[self.delimiter + 3]
    }

    /// Returns the metadata as JSON.
    #[must_use]
    pub fn metadata(&self) -> &Bytes {
        &self.frames[self.delimiter + 4]
    }

    /// Returns the content as JSON.
    #[must_use]
    pub fn content(&self) -> &Bytes {
        &self.frames[self.delimiter + 5]
    }

    /// Returns the parts that the signature covers: header, parent header, metadata and content.
    #[must_use]
    pub fn parts(&self) -> [&Bytes; 4] {
        [self.header(), self.parent_header(), self.metadata(), self.content()]
    }

    /// Returns the binary buffers after the content.
    #[must_use]
    pub fn buffers(&self) -> &[Bytes] {
        &self.frames[self.delimiter + 6..]
    }

    /// Returns header, parent header, metadata, content and buffers in order.
    #[must_use]
    pub fn parts_and_buffers(&self) -> &[Bytes] {
        &self.frames[self.delimiter + 2..]
    }

    /// Returns the total size of the parts and buffers in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.parts_and_buffers().iter().map(Bytes::len).sum()
    }

    /// Parses the header, borrowing from its frame.
    ///
    /// # Errors
    /// [`HeaderError`] if the frame is not a JSON object.
    pub fn header_ref(&self) -> Result<HeaderRef<'_>, HeaderError> {
        HeaderRef::parse(self.header())
    }

    /// Parses the parent header, borrowing from its frame. Its fields are empty if there is no parent.
    ///
    /// # Errors
    /// [`HeaderError`] if the frame is not a JSON object.
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
    fn frames_that_are_not_a_message_are_typed_errors() {
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
    fn with_identities_replaces_only_the_identities() {
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
