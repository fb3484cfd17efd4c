//! Messages of OpenPGP that are signed or compressed: what they hold comes out. Format: RFC 9580, section 4 and 5.
//!
//! Signatures are not verified: what they are around is handed out. What is encrypted is told as protected. Keys, and signatures that lie beside
//! what they sign, are no containers. The armor of a message is text, whose reader decodes it.

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name};
use crate::fields::{cut_off, invalid};
use crate::format::{Format, whole_if};
use crate::limits::admit_decoder;
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::Out;

/// The kinds of packets: RFC 9580, section 5.
const KEY_OF_SESSION: u8 = 1;
const SIGNATURE: u8 = 2;
const PASSWORD: u8 = 3;
const SIGNATURE_FOLLOWS: u8 = 4;
const COMPRESSED: u8 = 8;
const ENCRYPTED: [u8; 3] = [9, 18, 20];
const MARKER: u8 = 10;
const LITERAL: u8 = 11;
const PADDING: u8 = 21;
/// Most packets of a message.
const PACKETS_MAX: usize = 1024;
/// How much of what is compressed tells whether packets are.
const BEGINNING_BYTES: u64 = 512;
/// How many messages in each other are looked into to know one.
const DEPTH_MAX: u32 = 2;
/// What a bzip2 decoder holds.
const BZIP2_BYTES: u64 = 4 << 20;

/// A message of OpenPGP.
pub(crate) static FORMAT: Format = Format {
    name: "pgp",
    description: "OpenPGP message",
    mime: "application/pgp-encrypted",
    extension: "pgp",
    category: "A",
    beside: &[],
    probe: |probe| {
        let beyond = probe.length.saturating_sub(probe.head.len() as u64);
        whole_if(probe.head.first().is_some_and(|first| first & 0x80 != 0) && is_message(probe.head, beyond, 0))
    },
    extractor: &Pgp,
};

/// Whether packets of a message begin a file, of which so much lies beyond its head. What lies before its content must be whole.
fn is_message(head: &[u8], beyond: u64, depth: u32) -> bool {
    let mut input = head;
    let mut needs_more = false;
    for _ in 0..PACKETS_MAX {
        let Ok(Some((tag, mut body))) = Body::next(&mut input) else { return false };
        let version = body.version();
        let is_plausible = match (tag, version) {
            (COMPRESSED, Some(0..=3)) if depth < DEPTH_MAX => {
                let mut beginning = Vec::new();
                // What is cut off in the head decodes as far as it goes.
                let read = body.decompressed().and_then(|content| {
                    let mut content = content.take(BEGINNING_BYTES);
                    content.read_to_end(&mut beginning)
                });
                return (read.is_ok() || !beginning.is_empty()) && is_message(&beginning, 0, depth + 1);
            }
            (LITERAL, Some(b'b' | b't' | b'u' | b'l' | b'1' | b'm')) => {
                return needs_more || depth > 0 || body.is_literal(beyond);
            }
            // What encrypted packets begin with is random, so what is before them must tell.
            (tag, _) if needs_more && ENCRYPTED.contains(&tag) => return true,
            (KEY_OF_SESSION, Some(2 | 3 | 6)) | (PASSWORD, Some(4..=6)) | (SIGNATURE_FOLLOWS, Some(3 | 6)) => true,
            (SIGNATURE, Some(2..=6)) | (MARKER, Some(b'P')) => true,
            (PADDING, _) => needs_more,
            _ => false,
        };
        needs_more = true;
        if !is_plausible || !body.is_definite() || body.skip().is_err() {
            return false;
        }
    }
    false
}

struct Pgp;

impl Extractor for Pgp {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = container.input.seek(SeekFrom::Start(0)).and_then(|_| {
            let mut input = BufReader::new(&mut *container.input);
            walk(&mut input, &mut out)
        });
        out.end("the message is broken", result)
    }
}

fn walk(input: &mut impl BufRead, out: &mut Out<'_, '_>) -> io::Result<()> {
    for _ in 0..PACKETS_MAX {
        out.check()?;
        let Some((tag, mut body)) = Body::next(input)? else { return Ok(()) };
        match tag {
            COMPRESSED => {
                let content = body.decompressed();
                out.made("message.pgp".to_owned(), None, content);
            }
            LITERAL => literal(&mut body, out)?,
            tag if ENCRYPTED.contains(&tag) => out.outcome.note_protected(Protection::Archive),
            KEY_OF_SESSION..=SIGNATURE_FOLLOWS | MARKER | PADDING => {}
            _ => return Err(invalid(format!("a packet of kind {tag} in a message"))),
        }
        if out.outcome.is_over() {
            return Ok(());
        }
        body.skip()?;
    }
    Err(invalid("more packets than a message has"))
}

fn literal<R: BufRead>(body: &mut Body<'_, R>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut header = [0; 2];
    body.read_exact(&mut header)?;
    let mut name = vec![0; usize::from(header[1])];
    body.read_exact(&mut name)?;
    // When it was made.
    body.read_exact(&mut [0; 4])?;
    let name = if name.is_empty() { "content".to_owned() } else { display_name(&name) };
    out.member(name, None, body);
    Ok(())
}

/// What is in a packet.
struct Body<'i, R> {
    input: &'i mut R,
    left: u64,
    /// More pieces follow.
    is_partial: bool,
    /// It goes on to the end of the file.
    is_endless: bool,
}

impl<'i, R: BufRead> Body<'i, R> {
    /// The next packet: its kind and what is in it; none at the end.
    fn next(input: &'i mut R) -> io::Result<Option<(u8, Self)>> {
        let Some(first) = input.fill_buf()?.first().copied() else { return Ok(None) };
        input.consume(1);
        if first & 0x80 == 0 {
            return Err(invalid("no packet"));
        }
        let mut body = Self { input, left: 0, is_partial: false, is_endless: false };
        if first & 0x40 != 0 {
            body.read_length()?;
            return Ok(Some((first & 0x3f, body)));
        }
        match first & 3 {
            3 => body.is_endless = true,
            size => body.left = body.number(1 << size)?,
        }
        Ok(Some((first >> 2 & 0x0f, body)))
    }

    fn number(&mut self, bytes: usize) -> io::Result<u64> {
        let mut number = [0; 8];
        self.input.read_exact(number.get_mut(8 - bytes..).unwrap_or_default())?;
        Ok(u64::from_be_bytes(number))
    }

    /// A length in the new form: RFC 9580, section 4.2.1.
    fn read_length(&mut self) -> io::Result<()> {
        let first = self.number(1)?;
        self.is_partial = false;
        self.left = match first {
            0..192 => first,
            192..224 => ((first - 192) << 8) + self.number(1)? + 192,
            255 => self.number(4)?,
            _ => {
                self.is_partial = true;
                1 << (first & 0x1f)
            }
        };
        Ok(())
    }

    fn is_definite(&self) -> bool {
        !self.is_partial && !self.is_endless
    }

    /// The first byte of what is in it.
    fn version(&mut self) -> Option<u8> {
        self.input.fill_buf().ok()?.first().copied().filter(|_| self.left > 0 || self.is_endless)
    }

    /// Whether what is literal ends with the file, as that of a message does that is not signed; all of it must be there. Where nothing
    /// says how long it is, its name must be one.
    fn is_literal(&mut self, beyond: u64) -> bool {
        let is_definite = self.is_definite();
        let Ok(rest) = self.input.fill_buf() else { return false };
        let name = rest.get(1).and_then(|length| rest.get(2..2 + usize::from(*length)));
        let Some(name) = name.filter(|name| name.len() + 6 <= rest.len()) else { return false };
        let is_name = std::str::from_utf8(name).is_ok_and(|name| !name.contains(char::is_control));
        match is_definite {
            true => self.left >= name.len() as u64 + 6 && rest.len() as u64 + beyond == self.left,
            false => is_name && (self.is_endless || self.left >= 512),
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    /// What is compressed in it.
    fn decompressed(&mut self) -> io::Result<Box<dyn Read + '_>> {
        let mut method = [0];
        self.read_exact(&mut method)?;
        let content = BufReader::new(self);
        Ok(match method {
            [0] => Box::new(content),
            [1] => Box::new(flate2::bufread::DeflateDecoder::new(content)),
            [2] => Box::new(flate2::bufread::ZlibDecoder::new(content)),
            [3] => {
                admit_decoder(BZIP2_BYTES)?;
                Box::new(bzip2::bufread::BzDecoder::new(content))
            }
            [method] => return Err(invalid(format!("an unknown compression {method}"))),
        })
    }
}

impl<R: BufRead> Read for Body<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.is_endless {
            return self.input.read(into);
        }
        while self.left == 0 {
            if !self.is_partial {
                return Ok(0);
            }
            self.read_length()?;
        }
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let read = self.input.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(cut_off("a packet is cut off"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::detect::detect_content;
    use crate::passwords::Passwords;

    fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[0xc0 | tag, 255][..], &(body.len() as u32).to_be_bytes(), body].concat()
    }

    /// In pieces of 512 bytes.
    fn partial(tag: u8, body: &[u8]) -> Vec<u8> {
        let (pieces, rest) = body.as_chunks::<512>();
        let pieces: Vec<u8> = pieces.iter().flat_map(|piece| [&[0xe9][..], piece].concat()).collect();
        [&[0xc0 | tag][..], &pieces, &[255], &(rest.len() as u32).to_be_bytes(), rest].concat()
    }

    fn literal(content: &[u8]) -> Vec<u8> {
        [b"b\x05a.com\0\0\0\0", content].concat()
    }

    fn compressed(packets: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(vec![1], flate2::Compression::default());
        encoder.write_all(packets).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_signed_or_compressed_comes_out() {
        let long: Vec<u8> = (0..2000u32).map(|at| (at * at % 251) as u8).chain(eicar()).collect();
        let follows = packet(SIGNATURE_FOLLOWS, &[3, 0, 8, 1, 1, 2, 3, 4, 5, 6, 7, 8, 1]);
        let signature = packet(SIGNATURE, &[4; 70]);
        let signed = [&follows[..], &packet(LITERAL, &literal(&eicar())), &signature].concat();
        for (file, content) in [
            (packet(LITERAL, &literal(&eicar())), eicar()),
            (partial(LITERAL, &literal(&long)), long.clone()),
            (signed.clone(), eicar()),
        ] {
            let taken = take_apart(&file, &Passwords::NONE);
            assert_eq!(taken.members, [("a.com".to_owned(), content.clone())]);
            assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
            let old = [&[0xa3][..], &compressed(&file)].concat();
            for file in [packet(COMPRESSED, &compressed(&file)), partial(COMPRESSED, &compressed(&file)), old] {
                assert!(conformance::is_found(&file, &content, &Passwords::NONE));
                assert_eq!(take_apart(&file, &Passwords::NONE).members.len(), 1);
                conformance::survives_mutations(&Case::new("pgp", &file, &content), 100);
            }
        }
    }

    #[test]
    fn long_messages_are_opened_as_well() {
        let mut random = conformance::Random(1);
        let long: Vec<u8> = (0..200_000).map(|_| random.next() as u8).collect();
        let file = packet(LITERAL, &literal(&long));
        for file in [file.clone(), packet(COMPRESSED, &compressed(&file))] {
            assert!(conformance::is_found(&file, &long, &Passwords::NONE));
        }
    }

    #[test]
    fn random_bytes_are_no_message() {
        let mut random = conformance::Random(2);
        let named = (0..2000).filter(|_| {
            let noise: Vec<u8> = (0..600).map(|_| random.next() as u8).collect();
            !detect_content(&[b"\xafb", noise.as_slice()].concat()).unwrap().containers.is_empty()
        });
        assert!(named.count() < 40, "only without a name, or with a short one");
    }

    #[test]
    fn what_is_encrypted_is_told_and_keys_are_none() {
        let session = packet(KEY_OF_SESSION, &[3; 90]);
        let encrypted = partial(18, &[1; 3000]);
        let file = [session.clone(), encrypted].concat();
        assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [Protection::Archive].into());
        for file in [packet(6, &[4; 300]), packet(SIGNATURE, &[4; 70]), session, vec![0xff; 300], vec![0xa3, 1, 9, 9]] {
            assert!(detect_content(&file).unwrap().containers.is_empty(), "{file:?}");
        }
    }
}
