//! lzip members, over the LZMA decoder of `lzma-rust2`.

use std::io::{self, BufReader, Cursor, Read};

use lzma_rust2::LzmaReader;

use super::next_magic;
use crate::fields::{invalid, le32, le64};
use crate::limits::admit_decoder;

/// lc 3, lp 0, pb 2: the only properties that lzip has.
const PROPERTIES: u8 = 93;

/// What the LZMA decoder read and didn't need comes first.
type Source<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Decodes one member after the other.
pub(super) struct Decoder<R> {
    /// Where the next member begins; absent while one is decoded.
    input: Option<Source<BufReader<R>>>,
    member: Option<Box<LzmaReader<Source<BufReader<R>>>>>,
    crc: flate2::Crc,
    begun: bool,
}

impl<R: Read> Decoder<BufReader<R>> {
    pub(super) fn new(input: BufReader<R>) -> Decoder<R> {
        Decoder {
            input: Some(Cursor::new(Vec::new()).chain(input)),
            member: None,
            crc: flate2::Crc::new(),
            begun: false,
        }
    }
}

impl<R: Read> Decoder<R> {
    /// Begins the next member. False if there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let Some(mut input) = self.input.take() else { return Ok(false) };
        let [b'L', b'Z', b'I', b'P', 1, size] = (match next_magic(&mut input)? {
            None if self.begun => return Ok(false),
            None => return Err(invalid("the file is empty")),
            Some(header) => header,
        }) else {
            return Err(invalid("data that is no member"));
        };
        // Section 4: a power of two, less some sixteenths of it.
        let power = 1u32.checked_shl(u32::from(size & 0x1f)).filter(|power| (1 << 12..=1 << 29).contains(power));
        let power = power.ok_or_else(|| invalid("malformed dictionary size"))?;
        let dictionary_bytes = power - power / 16 * u32::from(size >> 5);
        admit_decoder(u64::from(dictionary_bytes))?;
        self.begun = true;
        self.crc = flate2::Crc::new();
        let member = LzmaReader::new_with_props(input, u64::MAX, PROPERTIES, dictionary_bytes, None)?;
        self.member = Some(Box::new(member));
        Ok(true)
    }

    /// Checks what follows a member: checksum, length, and the member's own length, which is only of use to those who seek.
    fn end(&mut self) -> io::Result<()> {
        let Some(member) = self.member.take() else { return Ok(()) };
        let (rest, left) = member.into_parts();
        let (before, input) = rest.into_inner();
        let read = usize::try_from(before.position()).unwrap_or(usize::MAX);
        let left = [left.as_slice(), before.get_ref().get(read..).unwrap_or_default()].concat();
        let mut input = Cursor::new(left).chain(input);
        let mut trailer = [0; 20];
        input.read_exact(&mut trailer)?;
        let length = u64::from(self.crc.amount());
        if le32(&trailer, 0) != Some(self.crc.sum()) {
            return Err(invalid("the checksum is wrong"));
        }
        if le64(&trailer, 4).is_none_or(|claimed| claimed & u64::from(u32::MAX) != length) {
            return Err(invalid("a member is not as long as it says"));
        }
        self.input = Some(input);
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(member) = &mut self.member {
                let read = member.read(into)?;
                if read > 0 {
                    self.crc.update(into.get(..read).unwrap_or_default());
                    return Ok(read);
                }
                self.end()?;
            } else if !self.begin()? {
                return Ok(0);
            }
        }
    }
}
