//! What is special about documents of Hangul among compound files (`.hwp`): scripts, objects and text are deflated, without a header of zlib. Format:
//! Hancom's "Hangul Document File Format 5.0", 3.2.1.

use crate::fields::le32;

/// What the stream `FileHeader` begins with.
const MAGIC: &[u8] = b"HWP Document File";
const FLAGS_AT: usize = 36;
/// The streams in storages are deflated.
pub(super) const DEFLATED: u32 = 1;
/// They are encrypted.
pub(super) const ENCRYPTED: u32 = 1 << 1;
/// How much is inflated to see whether a stream was deflated.
pub(super) const BEGINNING_BYTES: u64 = 64;

/// What the header of a document says of it; none if it is of something else.
pub(super) fn flags(header: &[u8]) -> Option<u32> {
    le32(header, FLAGS_AT).filter(|_| header.starts_with(MAGIC))
}
