//! Stream text with the effects of `\r`, `\b` and `\n` in JupyterLab's output area.
//!
//! Only the last line can change. While the cursor is at its end, the line is the tail of one `String` to which text is
//! appended. After a `\r` or `\b`, the line is stored separately until it ends, and split at the cursor. So control
//! characters cost, amortized, no more than the text between them.
//!
//! JupyterLab counts UTF-16 units: an emoji is two units wide, and one of them can be overwritten. So the separate line
//! becomes UTF-16 once it is overwritten in part or has a `\b`. It stays text if it is always overwritten completely,
//! as by most progress bars.

use memchr::{memchr, memchr2, memchr3, memrchr};

/// How many bytes a cut may move to reach the end of a line.
const NEAR: usize = 4 << 10;

const NEWLINE: u16 = b'\n' as u16;
const RETURN: u16 = b'\r' as u16;
const BACKSPACE: u16 = 8;

/// The text of a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamText {
    text: String,
    /// The last line, if the cursor has moved in it. `text` then ends with `\n` or is empty.
    line: Option<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    /// Text with the cursor at its end, or at its beginning after `\r`.
    Text {
        text: String,
        units: usize,
        home: bool,
    },
    Units(Units),
}

/// The units left of the cursor, and those right of it in reverse order.
#[derive(Clone, Debug, Default)]
struct Units {
    left: Vec<u16>,
    right: Vec<u16>,
}

impl Line {
    fn of(text: String) -> Self {
        let units = units_in(&text);
        let home = false;
        Self::Text { text, units, home }
    }

    /// Writes at the cursor and overwrites the text right of it.
    fn write(&mut self, written: &str) {
        // Empty text, as between two control characters, must not turn the line into units.
        if written.is_empty() {
            return;
        }
        let number = units_in(written);
        match self {
            Self::Text { text, units, home } if !*home || number >= *units => {
                if std::mem::take(home) {
                    text.clear();
                    *units = 0;
                }
                text.push_str(written);
                *units += number;
            }
            Self::Units(Units { left, right }) if left.is_empty() && number >= right.len() => {
                *self = Self::of(written.to_owned());
            }
            _ => self.in_units(|Units { left, right }| {
                left.extend(written.encode_utf16());
                right.truncate(right.len().saturating_sub(number));
            }),
        }
    }

    fn write_unit(&mut self, unit: u16) {
        self.in_units(|Units { left, right }| {
            left.push(unit);
            right.pop();
        });
    }

    fn home(&mut self) {
        match self {
            Self::Text { home, .. } => *home = true,
            Self::Units(Units { left, right }) => right.extend(left.drain(..).rev()),
        }
    }

    /// Removes the unit left of the cursor and, as JupyterLab does, the one right of it.
    fn backspace(&mut self) {
        self.in_units(|Units { left, right }| {
            if left.pop().is_some() {
                right.pop();
            }
        });
    }

    fn in_units(&mut self, change: impl FnOnce(&mut Units)) {
        let mut units = match std::mem::replace(self, Self::of(String::new())) {
            Self::Units(units) => units,
            Self::Text { text, home: false, .. } => Units {
                left: text.encode_utf16().collect(),
                right: Vec::new(),
            },
            Self::Text { text, home: true, .. } => {
                let mut right: Vec<u16> = text.encode_utf16().collect();
                right.reverse();
                let left = Vec::new();
                Units { left, right }
            }
        };
        change(&mut units);
        *self = Self::Units(units);
    }

    /// Memory in bytes.
    fn size(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Units(units) => 2 * units.len(),
        }
    }

    /// Lone surrogates become U+FFFD.
    fn append_to(&self, to: &mut String) {
        match self {
            Self::Text { text, .. } => to.push_str(text),
            Self::Units(units) => {
                to.reserve(units.len());
                let characters = char::decode_utf16(units.iter());
                to.extend(characters.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
            }
        }
    }

    /// Text that recreates this line with the cursor at the same place.
    fn rewritten(&self) -> Vec<u16> {
        match self {
            Self::Text { text, home, .. } => {
                let home = (*home && !text.is_empty()).then_some(RETURN);
                text.encode_utf16().chain(home).collect()
            }
            Self::Units(units) => {
                let mut rewritten: Vec<u16> = units.iter().collect();
                if !units.right.is_empty() {
                    rewritten.push(RETURN);
                    rewritten.extend_from_slice(&units.left);
                }
                rewritten
            }
        }
    }

    /// Removes about `bytes` of memory from the beginning. Returns about how many bytes of text that was.
    fn cut_front(&mut self, bytes: usize) -> usize {
        match self {
            Self::Text { text, units, .. } => {
                let at = text.ceil_char_boundary(bytes);
                *units -= units_in(&text[..at]);
                text.drain(..at);
                at
            }
            Self::Units(units) => {
                let cut = bytes.div_ceil(2).min(units.len());
                let from_left = cut.min(units.left.len());
                let from_right = cut - from_left;
                let gone: Vec<u16> = units.left.drain(..from_left).collect();
                units.right.truncate(units.right.len() - from_right);
                String::from_utf16_lossy(&gone).len() + from_right
            }
        }
    }
}

impl Units {
    fn len(&self) -> usize {
        self.left.len() + self.right.len()
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.left.iter().chain(self.right.iter().rev()).copied()
    }
}

/// Length in UTF-16 units.
fn units_in(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    // A character of four bytes in UTF-8 is two units.
    text.chars().count() + text.bytes().filter(|&byte| byte >= 0xf0).count()
}

impl StreamText {
    /// Memory in bytes.
    pub(super) fn size(&self) -> usize {
        self.text.len() + self.line.as_ref().map_or(0, Line::size)
    }

    /// The displayed text.
    pub(super) fn shown(&self) -> String {
        let mut text = self.text.clone();
        if let Some(line) = &self.line {
            line.append_to(&mut text);
        }
        text
    }

    /// The lines that cannot change any more; all text if the cursor is at the end.
    pub(super) fn done(&self) -> &str {
        &self.text
    }

    /// UTF-16 text that recreates the last line after [`done`](Self::done), with the cursor at the same place. UTF-16,
    /// because a lone surrogate is not valid text.
    pub(super) fn last_line(&self) -> Vec<u16> {
        self.line.as_ref().map_or_else(Vec::new, Line::rewritten)
    }

    /// Writes text at the cursor.
    pub(super) fn write(&mut self, mut rest: &str) {
        while !rest.is_empty() {
            let Some(line) = &mut self.line else {
                rest = self.append(rest);
                continue;
            };
            let Some(at) = memchr3(b'\n', b'\r', 8, rest.as_bytes()) else {
                line.write(rest);
                return;
            };
            let (plain, control) = rest.split_at(at);
            line.write(plain);
            match control.as_bytes().first() {
                Some(b'\r') => line.home(),
                Some(8) => line.backspace(),
                _ => self.end_line(),
            }
            rest = &control[1..];
        }
    }

    /// Appends text up to the first `\r` or `\b` and returns the rest. Stores the last line separately if the rest
    /// moves the cursor.
    fn append<'a>(&mut self, text: &'a str) -> &'a str {
        let Some(at) = memchr2(b'\r', 8, text.as_bytes()) else {
            self.text.push_str(text);
            return "";
        };
        let (plain, rest) = text.split_at(at);
        self.text.push_str(plain);
        if let Some(rest) = rest.strip_prefix("\r\n") {
            self.text.push('\n');
            return rest;
        }
        self.separate_line();
        rest
    }

    /// Writes UTF-16 with lone surrogates at the cursor.
    pub(super) fn write_units(&mut self, units: &[u16]) {
        for &unit in units {
            let line = match &mut self.line {
                Some(line) => line,
                None => self.separate_line(),
            };
            match unit {
                NEWLINE => self.end_line(),
                RETURN => line.home(),
                BACKSPACE => line.backspace(),
                unit => line.write_unit(unit),
            }
        }
    }

    fn separate_line(&mut self) -> &mut Line {
        let start = memrchr(b'\n', self.text.as_bytes()).map_or(0, |at| at + 1);
        let line = Line::of(self.text.split_off(start));
        self.line.insert(line)
    }

    /// `\n` ends the line after its last character, wherever the cursor is.
    fn end_line(&mut self) {
        if let Some(line) = self.line.take() {
            line.append_to(&mut self.text);
        }
        self.text.push('\n');
    }

    /// Removes about `bytes` from the beginning, up to a line end if one is near. Returns how many bytes were removed.
    pub(super) fn cut_front(&mut self, bytes: usize) -> usize {
        if bytes < self.text.len() {
            let at = self.text.ceil_char_boundary(bytes);
            let near = &self.text.as_bytes()[at..(at + NEAR).min(self.text.len())];
            let at = memchr(b'\n', near).map_or(at, |newline| at + newline + 1);
            self.text.drain(..at);
            return at;
        }
        let mut cut = self.text.len();
        self.text.clear();
        if let Some(line) = &mut self.line {
            cut += line.cut_front(bytes - cut);
        }
        // `clear` keeps the capacity.
        self.text.shrink_to_fit();
        cut
    }

    /// Removes at most `bytes` from the beginning, up to a line end if one is near, and returns them.
    pub(super) fn split_front(&mut self, bytes: usize) -> Self {
        let at = self.text.floor_char_boundary(bytes);
        let near = at.saturating_sub(NEAR);
        let at = memrchr(b'\n', &self.text.as_bytes()[near..at]).map_or(at, |newline| near + newline + 1);
        let text = self.text[..at].to_owned();
        self.text.drain(..at);
        Self { text, line: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(pieces: &[&str]) -> String {
        let mut text = StreamText::default();
        for piece in pieces {
            text.write(piece);
        }
        text.shown()
    }

    #[test]
    fn text_after_a_cursor_movement_overwrites() {
        for (pieces, expected) in [
            (&["abc\r"][..], "abc"),
            (&["abc\r", "x"], "xbc"),
            (&["abc\rx\n", "y"], "xbc\ny"),
            (&["1\r\n2\r\n"], "1\n2\n"),
            (&["abc\x08", "d"], "abd"),
            (&["\n\x08\x08x"], "\nx"),
            (&["abcd\rxy\x08"], "xd"),
            (&["😀\rab"], "ab"),
            (&["😀\ra"], "a\u{fffd}"),
            (&["😀\ra", "b"], "ab"),
            (&["a\r\r\n", "b"], "a\nb"),
        ] {
            assert_eq!(shown(pieces), expected, "{pieces:?}");
        }
    }

    /// Applies the pieces one UTF-16 unit at a time.
    fn as_jupyterlab_does(pieces: &[&str]) -> String {
        let (mut done, mut line, mut cursor) = (Vec::new(), Vec::new(), 0);
        for unit in pieces.iter().flat_map(|piece| piece.encode_utf16()) {
            match unit {
                NEWLINE => {
                    done.append(&mut line);
                    done.push(NEWLINE);
                    cursor = 0;
                }
                RETURN => cursor = 0,
                BACKSPACE if cursor == 0 => {}
                BACKSPACE => {
                    cursor -= 1;
                    line.drain(cursor..(cursor + 2).min(line.len()));
                }
                unit => {
                    line.splice(cursor..(cursor + 1).min(line.len()), [unit]);
                    cursor += 1;
                }
            }
        }
        done.append(&mut line);
        String::from_utf16_lossy(&done)
    }

    proptest! {
        #[test]
        fn a_line_equals_one_that_is_written_unit_by_unit(
            pieces in proptest::collection::vec(
                proptest::sample::select(&["\r", "\x08", "\n", "a", "é", "😀", "one two", "█████", "\rover it all", "\r\n", "\rß"][..]),
                0..30,
            ),
        ) {
            let mut text = StreamText::default();
            for (number, piece) in pieces.iter().enumerate() {
                text.write(piece);
                let expected = as_jupyterlab_does(&pieces[..=number]);
                prop_assert_eq!(text.shown(), &*expected);
                // A text that is recreated from its parts has the cursor at the same place.
                let mut recreated = StreamText::default();
                recreated.write(text.done());
                recreated.write_units(&text.last_line());
                let mut further = pieces[..=number].to_vec();
                further.push("x");
                recreated.write("x");
                prop_assert_eq!(recreated.shown(), as_jupyterlab_does(&further));
            }
        }
    }

    #[test]
    fn a_surrogate_pair_in_two_pieces_is_joined() {
        let mut text = StreamText::default();
        text.write_units(&[0xd83d]);
        assert_eq!(text.shown(), "\u{fffd}");
        text.write_units(&[0xde00]);
        assert_eq!(text.shown(), "😀");
    }

    #[test]
    fn cuts_are_between_characters_and_lines() {
        let mut text = StreamText::default();
        text.write("ääää\nb\nc\rd");
        let head = text.split_front(3);
        assert_eq!((head.shown().as_str(), text.shown().as_str()), ("ä", "äää\nb\nd"));
        assert_eq!(text.cut_front(1), 7);
        assert_eq!(text.shown(), "b\nd");
        text.cut_front(100);
        assert_eq!(text.shown(), "");
        text.write("x");
        assert_eq!(text.shown(), "x");
    }

    #[test]
    fn a_progress_bar_takes_the_memory_of_one_line() {
        let mut text = StreamText::default();
        let line = "█".repeat(80);
        for _ in 0..10_000 {
            text.write("\r");
            text.write(&line);
        }
        assert_eq!(text.shown(), line);
        assert!(text.size() < 1_000);
    }
}
