//! A text as lines, with bounded memory.

use std::io::{self, BufRead, Seek, SeekFrom};

use memchr::{memchr, memchr2};

/// The longest line that is taken at once; a longer one comes in pieces.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Lines of a text.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    /// The current line was given back.
    again: bool,
    /// The current piece begins a line.
    begins: bool,
    /// A carriage return without a line feed ends a line as well.
    returns_end: bool,
    /// That is what ended the current one.
    return_ended: bool,
    has_lone_return: bool,
    /// Where the current line begins, and where it ends.
    span: (u64, u64),
}

impl<R: BufRead> Lines<R> {
    /// The lines from where the input stands, which is `offset`. If `returns_end`, a carriage return alone ends a line, which
    /// comes with a line feed in its place.
    pub(super) fn new(input: R, offset: u64, returns_end: bool) -> Self {
        let (line, span) = (Vec::new(), (offset, offset));
        Self {
            input,
            line,
            again: false,
            begins: false,
            returns_end,
            return_ended: false,
            has_lone_return: false,
            span,
        }
    }

    /// The next line with its line break, or a piece of one; and whether it begins a line. None at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(&[u8], bool)>> {
        if !std::mem::take(&mut self.again) {
            self.begins = self.line.is_empty() || self.line.ends_with(b"\n");
            self.line.clear();
            self.span.0 = self.span.1;
            self.read()?;
        }
        Ok((!self.line.is_empty()).then_some((self.line.as_slice(), self.begins)))
    }

    fn read(&mut self) -> io::Result<()> {
        self.return_ended = false;
        while self.line.len() < LINE_BYTES_MAX {
            let ahead = self.input.fill_buf()?;
            let ahead = ahead.get(..LINE_BYTES_MAX - self.line.len()).unwrap_or(ahead);
            let end = if self.returns_end { memchr2(b'\n', b'\r', ahead) } else { memchr(b'\n', ahead) };
            let taken = ahead.get(..end.map_or(ahead.len(), |end| end + 1)).unwrap_or_default();
            let length = taken.len();
            self.line.extend_from_slice(taken);
            self.input.consume(length);
            self.span.1 += length as u64;
            if end.is_some() || length == 0 {
                break;
            }
        }
        if self.returns_end && self.line.last() == Some(&b'\r') {
            if self.input.fill_buf()?.first() == Some(&b'\n') {
                self.input.consume(1);
                self.span.1 += 1;
            } else {
                self.line.pop();
                self.return_ended = true;
            }
            self.line.push(b'\n');
        }
        // At the end of a text the line feed may have been cut off.
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let line = if line.len() < LINE_BYTES_MAX { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        self.has_lone_return |= memchr(b'\r', line).is_some();
        Ok(())
    }

    /// Makes the current line the next one again.
    pub(super) fn give_back(&mut self) {
        self.again = true;
    }

    /// What ends the current line, if anything does: a line feed, or the carriage return in whose place it came.
    pub(super) fn line_break(&self) -> &'static [u8] {
        match self.line.last() {
            Some(b'\n') if self.return_ended => b"\r",
            Some(b'\n') => b"\n",
            _ => b"",
        }
    }

    /// Whether a carriage return without a line feed came that ended no line.
    pub(super) fn has_lone_return(&self) -> bool {
        self.has_lone_return
    }

    /// Where the next line begins.
    pub(super) fn offset(&self) -> u64 {
        if self.again { self.span.0 } else { self.span.1 }
    }
}

impl<R: BufRead + Seek> Lines<R> {
    /// Goes back to where a line begins.
    pub(super) fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.input.seek(SeekFrom::Start(offset))?;
        self.line.clear();
        self.again = false;
        self.span = (offset, offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_return_is_told_or_ends_a_line() {
        let lines = |text: &'static [u8], returns_end| {
            let mut lines = Lines::new(text, 0, returns_end);
            let mut all = Vec::new();
            while let Some((line, _)) = lines.next().unwrap() {
                all.push(String::from_utf8_lossy(line).into_owned());
            }
            assert_eq!(lines.offset(), text.len() as u64);
            (all.join("|"), lines.has_lone_return())
        };
        assert_eq!(lines(b"a\r\nb\nc\r", false), ("a\r\n|b\n|c\r".to_owned(), false));
        assert_eq!(lines(b"a\rb\n", false), ("a\rb\n".to_owned(), true));
        assert_eq!(lines(b"a\r\nb\rc\r\r\n", true), ("a\r\n|b\n|c\n|\r\n".to_owned(), false));
    }

    #[test]
    fn a_line_is_read_again() {
        let mut lines = Lines::new(io::Cursor::new(b"a\nb\nc"), 0, false);
        lines.next().unwrap();
        lines.next().unwrap();
        lines.give_back();
        let at = lines.offset();
        while lines.next().unwrap().is_some() {}
        lines.seek(at).unwrap();
        assert_eq!(lines.next().unwrap(), Some((&b"b\n"[..], true)));
    }
}
