//! A text as lines, with bounded memory.

use std::io::{self, BufRead};

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
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), again: false, begins: false }
    }

    /// The next line with its line break, or a piece of one; and whether it begins a line. None at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(&[u8], bool)>> {
        if !std::mem::take(&mut self.again) {
            self.begins = self.line.is_empty() || self.line.ends_with(b"\n");
            self.line.clear();
            let mut limited = io::Read::take(&mut self.input, LINE_BYTES_MAX as u64);
            limited.read_until(b'\n', &mut self.line)?;
        }
        Ok((!self.line.is_empty()).then_some((self.line.as_slice(), self.begins)))
    }

    /// Makes the current line the next one again.
    pub(super) fn give_back(&mut self) {
        self.again = true;
    }
}
