//! Runs as ARC and BinHex write them: a byte, 0x90, and how often it comes, the byte itself counted; 0x90 itself is followed by 0.

use std::io;

use crate::parts::cut_off;

const RUN: u8 = 0x90;

/// Undoes runs.
#[derive(Default)]
pub(crate) struct Runs {
    last: u8,
    /// How often it is to come once more.
    left: u8,
}

impl Runs {
    /// The next byte, out of what `packed` gives; none at the end.
    pub(crate) fn next(&mut self, mut packed: impl FnMut() -> io::Result<Option<u8>>) -> io::Result<Option<u8>> {
        loop {
            if let Some(left) = self.left.checked_sub(1) {
                self.left = left;
                return Ok(Some(self.last));
            }
            self.last = match packed()? {
                Some(RUN) => match packed()?.ok_or_else(cut_off)? {
                    0 => RUN,
                    // The byte itself came before.
                    count => {
                        self.left = count - 1;
                        continue;
                    }
                },
                Some(byte) => byte,
                None => return Ok(None),
            };
            return Ok(Some(self.last));
        }
    }
}
