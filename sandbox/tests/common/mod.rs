//! What the sandbox's tests and its example hand in.

use std::io;

use lazaret_sandbox::Input;

/// A file in memory, or, if that is false, one that is handed in on demand.
pub struct Bytes<'b>(pub &'b [u8], pub bool);

impl Input for Bytes<'_> {
    fn whole(&self) -> Option<&[u8]> {
        self.1.then_some(self.0)
    }

    fn read_at(&self, offset: u64, most_bytes: u64) -> io::Result<Vec<u8>> {
        let rest = &self.0[(offset as usize).min(self.0.len())..];
        Ok(rest[..rest.len().min(most_bytes as usize)].to_vec())
    }
}
