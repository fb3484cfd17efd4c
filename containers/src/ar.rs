//! Unix archives: static libraries and Debian packages. Format: ar(5), in the GNU and BSD dialects.

use std::io::{self, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out, read_full};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;

/// What every archive begins with.
const MAGIC: &[u8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;
/// The longest table of long names, and the longest name in the BSD dialect, that is kept in memory.
const NAMES_BYTES_MAX: u64 = 1 << 20;

/// Unix archives: Debian packages, static libraries.
pub(crate) static FORMAT: Format = Format {
    name: "ar",
    description: "UNIX archiver",
    mime: "application/x-archive",
    extension: "a",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MAGIC)),
    extractor: &Ar,
};

struct Ar;

impl Extractor for Ar {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        let mut offset = MAGIC.len() as u64;
        let mut long_names = Vec::new();
        while !outcome.is_over() {
            match next_member(container, offset, &mut long_names, budget, sink, &mut outcome) {
                Ok(Some(next)) => offset = next,
                Ok(None) => break,
                Err(error) => {
                    outcome.note_error(&format!("the archive is broken at {offset}"), &error);
                    break;
                }
            }
        }
        outcome
    }
}

/// Hands out the member at `offset`; tells where the next one is.
fn next_member(
    container: &mut Container<'_>,
    offset: u64,
    long_names: &mut Vec<u8>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER_BYTES];
    container.input.seek(SeekFrom::Start(offset))?;
    match read_full(container.input, &mut header)? {
        0 => return Ok(None),
        // Some writers pad the last member once more.
        1 if header.starts_with(b"\n") => return Ok(None),
        HEADER_BYTES if header.ends_with(b"`\n") => {}
        _ => return Err(invalid("no member header")),
    }
    let raw_name = header.get(..16).unwrap_or_default().trim_ascii_end();
    let size = decimal(header.get(48..58).unwrap_or_default()).ok_or_else(|| invalid("malformed size"))?;
    let data = offset + HEADER_BYTES as u64;
    let end = data.checked_add(size).ok_or_else(|| invalid("malformed size"))?;
    let next = Some(end + end % 2);
    // "//" is the GNU table of long names; "/" and "/SYM64/" are tables of symbols and scanned like files.
    if raw_name == b"//" {
        *long_names = read_bounded(container.input, size)?;
        return Ok(next);
    }
    let mut length = size;
    let name = if let Some(digits) = raw_name.strip_prefix(b"#1/") {
        let name_length = decimal(digits).filter(|name| *name <= size).ok_or_else(|| invalid("malformed name"))?;
        length -= name_length;
        display_name(read_bounded(container.input, name_length)?.trim_ascii_end().trim_suffix_zeros())
    } else {
        display_name(gnu_name(raw_name, long_names))
    };
    let mut content = (&mut *container.input).take(length);
    match hand_out(name, Some(length), &mut content, budget, sink) {
        Ok(None) if content.limit() > 0 => {
            outcome.note_broken(format!("the archive ends inside the member at {offset}"));
            Ok(None)
        }
        Ok(None) => Ok(next),
        Ok(Some(error)) => Err(error),
        Err(halt) => Err(halt.into()),
    }
}

fn gnu_name<'n>(raw_name: &'n [u8], long_names: &'n [u8]) -> &'n [u8] {
    let long = raw_name.strip_prefix(b"/").and_then(decimal).and_then(|at| long_names.get(usize::try_from(at).ok()?..));
    match long {
        Some(rest) => rest.split(|byte| *byte == b'\n').next().unwrap_or_default(),
        None => raw_name,
    }
    .strip_suffix(b"/")
    .unwrap_or(raw_name)
}

fn read_bounded(input: &mut dyn ReadSeek, length: u64) -> io::Result<Vec<u8>> {
    if length > NAMES_BYTES_MAX {
        return Err(invalid("names longer than any real archive has"));
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.trim_ascii().parse().ok()
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

trait TrimZeros {
    fn trim_suffix_zeros(&self) -> &[u8];
}

impl TrimZeros for [u8] {
    fn trim_suffix_zeros(&self) -> &[u8] {
        let end = self.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.get(..end).unwrap_or_default()
    }
}
