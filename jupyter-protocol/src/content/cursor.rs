//! Cursor positions: the protocol counts Unicode code points, and Rust's strings count bytes of UTF-8.

use std::ops::Range;

use super::assist::{CompleteReply, CompleteRequest, InspectRequest};

/// Converts a cursor position in code points to a byte offset in `text`.
///
/// The offset is always on a character boundary. A position beyond the end of the text gives its length.
///
/// ```
/// use jupyter_protocol::content::byte_offset;
///
/// assert_eq!(byte_offset("über", 1), 2);
/// assert_eq!(byte_offset("😀 = 1", 1), 4);
/// assert_eq!(byte_offset("short", 100), 5);
/// ```
#[must_use]
pub fn byte_offset(text: &str, cursor_pos: u64) -> usize {
    usize::try_from(cursor_pos)
        .ok()
        .and_then(|position| text.char_indices().nth(position))
        .map_or(text.len(), |(offset, _)| offset)
}

/// Converts a byte offset in `text` to a cursor position in code points.
///
/// An offset within a character gives the position of that character. An offset beyond the end of the text gives the
/// position of the end.
///
/// ```
/// use jupyter_protocol::content::cursor_pos;
///
/// assert_eq!(cursor_pos("über", 2), 1);
/// assert_eq!(cursor_pos("😀 = 1", 4), 1);
/// assert_eq!(cursor_pos("short", 100), 5);
/// ```
#[must_use]
pub fn cursor_pos(text: &str, byte_offset: usize) -> u64 {
    let before = text.floor_char_boundary(byte_offset);
    text[..before].chars().count() as u64
}

impl CompleteRequest {
    /// Returns the byte offset of the cursor in [`code`](Self::code), at most its length.
    #[must_use]
    pub fn byte_offset(&self) -> usize {
        byte_offset(&self.code, self.cursor_pos)
    }
}

impl InspectRequest {
    /// Returns the byte offset of the cursor in [`code`](Self::code), at most its length.
    #[must_use]
    pub fn byte_offset(&self) -> usize {
        byte_offset(&self.code, self.cursor_pos)
    }
}

impl CompleteReply {
    /// Creates a reply with matches that can replace a range of bytes of the request's code.
    ///
    /// ```
    /// use jupyter_protocol::content::{CompleteReply, CompleteRequest};
    ///
    /// fn complete(request: &CompleteRequest) -> CompleteReply {
    ///     let cursor = request.byte_offset();
    ///     let word = request.code[..cursor].rfind(' ').map_or(0, |space| space + 1);
    ///     let names = ["über", "übung", "unter"].into_iter().filter(|name| name.starts_with(&request.code[word..cursor]));
    ///     CompleteReply::replacing(&request.code, word..cursor, names)
    /// }
    ///
    /// let request = CompleteRequest { code: "😀 üb".to_owned(), cursor_pos: 4, ..CompleteRequest::default() };
    /// let reply = complete(&request);
    /// assert_eq!(reply.matches, ["über", "übung"]);
    /// assert_eq!((reply.cursor_start, reply.cursor_end), (2, 4));
    /// ```
    #[must_use]
    pub fn replacing(code: &str, range: Range<usize>, matches: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            matches: matches.into_iter().map(Into::into).collect(),
            cursor_start: cursor_pos(code, range.start),
            cursor_end: cursor_pos(code, range.end),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters of one to four bytes, a combining one, and an emoji of two code points with a joiner between them.
    const TEXT: &str = "aé€𝒳e\u{301}👩\u{200d}👧\n";

    #[test]
    fn each_position_and_its_offset_convert_to_each_other() {
        for (position, (offset, _)) in (0..).zip(TEXT.char_indices()) {
            assert_eq!(byte_offset(TEXT, position), offset);
            assert_eq!(cursor_pos(TEXT, offset), position);
        }
        let end = TEXT.chars().count() as u64;
        assert_eq!(byte_offset(TEXT, end), TEXT.len());
        assert_eq!(cursor_pos(TEXT, TEXT.len()), end);
    }

    #[test]
    fn astral_characters_count_once() {
        assert_eq!(byte_offset("𝒳𝒳x", 2), 8);
        assert_eq!(cursor_pos("𝒳𝒳x", 8), 2);
    }

    #[test]
    fn an_offset_within_a_character_gives_the_position_of_the_character() {
        for offset in 4..8 {
            assert_eq!(cursor_pos("𝒳𝒳x", offset), 1);
        }
    }

    #[test]
    fn positions_and_offsets_out_of_range_give_the_end() {
        for position in [4, 5, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(byte_offset("𝒳𝒳x", position), 9);
        }
        assert_eq!(byte_offset("", 1), 0);
        for offset in [9, 10, usize::MAX] {
            assert_eq!(cursor_pos("𝒳𝒳x", offset), 3);
        }
        assert_eq!(cursor_pos("", 1), 0);
    }

    #[test]
    fn a_cursor_beyond_the_code_of_a_request_is_at_its_end() {
        let code = "naïve".to_owned();
        let complete = CompleteRequest {
            code: code.clone(),
            cursor_pos: 99,
            ..CompleteRequest::default()
        };
        let inspect = InspectRequest {
            code,
            cursor_pos: 99,
            ..InspectRequest::default()
        };
        assert_eq!((complete.byte_offset(), inspect.byte_offset()), (6, 6));
    }
}
