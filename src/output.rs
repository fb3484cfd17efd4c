//! Standard output and standard error, as commands write to them.
//!
//! A reader that went away, as `head` does once it has enough, is no error: what is still to be said goes nowhere, and the exit
//! code says what it would have said. Everything else that stops a write is an error.

use std::fmt;
use std::io::{self, ErrorKind, Stdout, Write};

/// Standard output.
pub fn stdout() -> Output<Stdout> {
    Output(io::stdout())
}

/// One line on standard error. That nobody reads it stops nothing.
pub fn complain(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "lazaret: {line}");
}

/// Where a command writes to.
pub struct Output<W>(W);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refusing(ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn only_a_reader_that_went_away_is_no_error() {
        let mut gone = Output(Refusing(ErrorKind::BrokenPipe));
        assert!(gone.write_all(b"a long table").is_ok() && gone.flush().is_ok());
        let mut full = Output(Refusing(ErrorKind::StorageFull));
        assert!(full.write_all(b"a long table").is_err() && full.flush().is_err());
    }
}
