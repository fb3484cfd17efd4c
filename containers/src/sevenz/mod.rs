//! 7z archives: solid or not, encrypted or not, with the methods of 7-Zip and the filters for executables. Format:
//! `DOC/7zFormat.txt` of the LZMA SDK.
//!
//! The header is walked in place, so that millions of files cost no more memory than their names; the dictionaries of all coders of a
//! folder together stay under [`crate::limits::DECODER_BYTES_MAX`]. Several volumes are not put together: the first one alone is told
//! to be cut off, and the last one, which ends with the header, to be no whole archive. Those in between have nothing to know them by.

mod aes;
mod coders;
mod header;

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use memchr::memmem;

use self::aes::Keys;
use self::coders::{Shared, is_compressed, is_encrypted, open};
use self::header::{File, Files, Folder, Header, Streams, Walk};
use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name};
use crate::fields::{invalid, le32, le64};
use crate::format::{Claim, Format, Probe};
use crate::limits::{Halt, TooMuchMemory};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::{Checked, Exactly, Out, cut_off, read_array, read_vec};
use crate::passwords::Passwords;

const MAGIC: [u8; 6] = [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c];
const SIGNATURE_HEADER_BYTES: u64 = 32;
/// The longest header that is taken into memory: some two million files.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// A header may be packed, and that again; 7-Zip does it once.
const HEADER_LAYERS_MAX: u32 = 4;
/// So much of a first file is decoded to tell whether a password is right, if the method would have told before.
const TRIAL_BYTES_MAX: u64 = 16 << 20;

/// 7z.
pub(crate) static FORMAT: Format = Format {
    name: "7z",
    description: "7-Zip",
    mime: "application/x-7z-compressed",
    extension: "7z",
    category: "A",
    beside: &[],
    probe: |probe| {
        if probe.head.starts_with(&MAGIC) {
            return Ok(vec![Claim::Whole(0)]);
        }
        Ok(if is_last_volume(probe) { vec![Claim::Inside(0)] } else { Vec::new() })
    },
    extractor: &SevenZip,
};

/// The longest packed header at an archive's end: they have some forty bytes.
const PACKED_HEADER_BYTES_MAX: usize = 512;

/// Whether a file ends with the header of an archive that began in another file. One that began in this one is found by its beginning.
fn is_last_volume(probe: &Probe<'_>) -> bool {
    let tail = probe.tail.get(probe.tail.len().saturating_sub(PACKED_HEADER_BYTES_MAX)..).unwrap_or(probe.tail);
    memmem::find_iter(tail, b"\x17\x06").filter_map(|at| tail.get(at..)).any(|header| {
        let header_at = probe.length.saturating_sub(header.len() as u64);
        header::end_of_packed(header).is_some_and(|end| end.saturating_add(SIGNATURE_HEADER_BYTES) > header_at)
    })
}

struct SevenZip;

impl Extractor for SevenZip {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let length = container.length;
        let mut archive = Archive {
            input: Rc::new(RefCell::new(&mut *container.input)),
            passwords: container.passwords,
            budget,
            keys: None,
        };
        let result = archive.run(length, &mut out);
        out.end("the archive is broken", result)
    }
}

struct Archive<'i, 'b> {
    input: Shared<'i>,
    passwords: &'b Passwords,
    budget: &'b Budget,
    /// Keys of the password that opened something.
    keys: Option<Keys<'b>>,
}

impl<'b> Archive<'_, 'b> {
    fn run(&mut self, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
        let start: [u8; SIGNATURE_HEADER_BYTES as usize] = read_array(&mut **self.input.borrow_mut(), 0)?;
        if !start.starts_with(&MAGIC) {
            return Err(invalid("it begins in another volume"));
        }
        let (Some(offset), Some(bytes)) = (le64(&start, 12), le64(&start, 20)) else { return Err(cut_off()) };
        if le32(&start, 8) != start.get(12..).map(crc) {
            out.outcome.note_broken("the checksum of the archive's first header is wrong");
        }
        if bytes == 0 {
            return Ok(());
        }
        let offset = offset.checked_add(SIGNATURE_HEADER_BYTES).ok_or_else(|| invalid("malformed offset"))?;
        let end = offset.checked_add(bytes).ok_or_else(|| invalid("malformed length"))?;
        if end > length {
            return Err(invalid("the archive is cut off, or goes on in another volume"));
        }
        if bytes > HEADER_BYTES_MAX {
            return Err(TooMuchMemory { asked_bytes: bytes }.into());
        }
        let header = read_vec(&mut **self.input.borrow_mut(), offset, bytes, HEADER_BYTES_MAX)?;
        if le32(&start, 28) != Some(crc(&header)) {
            out.outcome.note_broken("the checksum of the header is wrong");
        }
        self.headers(header, out)?;
        if end < length && !out.is_over() {
            let input = &mut **self.input.borrow_mut();
            out.stored("behind the archive".to_owned(), input, end, length - end);
        }
        Ok(())
    }

    /// Unpacks the header, and then what it describes.
    fn headers(&mut self, mut bytes: Vec<u8>, out: &mut Out<'_, '_>) -> io::Result<()> {
        for _ in 0..HEADER_LAYERS_MAX {
            let next = match Header::read(&bytes)? {
                Header::Plain(streams, files) => return self.files(streams, files, out),
                Header::Encoded(streams) => self.unpack_header(streams, out)?,
            };
            let Some(next) = next else { return Ok(()) };
            bytes = next;
        }
        Err(invalid("a header packed again and again"))
    }

    fn unpack_header(&mut self, streams: Streams<'_>, out: &mut Out<'_, '_>) -> io::Result<Option<Vec<u8>>> {
        let folder = streams.walk().folder()?.ok_or_else(|| invalid("a packed header that is nowhere"))?;
        let length = folder.unpacked()?;
        if length > HEADER_BYTES_MAX {
            return Err(TooMuchMemory { asked_bytes: length }.into());
        }
        let Some(content) = self.open(&folder, length, folder.crc)? else {
            out.outcome.note_protected(Protection::Archive);
            return Ok(None);
        };
        let mut header = Vec::new();
        Checked::new(content, folder.crc).read_to_end(&mut header)?;
        Ok(Some(header))
    }

    /// Hands out all files.
    fn files(&mut self, streams: Option<Streams<'_>>, mut files: Files<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
        if let Some(streams) = streams {
            let mut walk = streams.walk();
            while let Some(folder) = walk.folder()? {
                self.folder(&folder, &mut walk, &mut files, out)?;
                if out.is_over() {
                    return Ok(());
                }
            }
        }
        match next_with_stream(&mut files, out) {
            Some(name) if !out.outcome.is_over() => {
                Err(invalid(format!("there is no content of {:?}", display_name(&name))))
            }
            _ => Ok(()),
        }
    }

    /// Hands out the files of one folder. An error is one of the header.
    fn folder(
        &mut self,
        folder: &Folder,
        walk: &mut Walk<'_>,
        files: &mut Files<'_>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let mut left_bytes = folder.unpacked()?;
        if folder.files == 0 {
            // No file has this; other programs never show it.
            if let Some(mut content) = self.folder_content(folder, left_bytes, folder.crc, out) {
                out.member("unlisted content".to_owned(), Some(left_bytes), &mut content);
            }
            return Ok(());
        }
        let mut file = walk.file(folder, left_bytes, folder.files)?;
        let mut content = self.folder_content(folder, file.0, file.1, out);
        for at in 0..folder.files {
            if at > 0 {
                file = walk.file(folder, left_bytes, folder.files - at)?;
            }
            let (length, crc) = file;
            left_bytes -= length;
            let name = next_with_stream(files, out);
            if out.is_over() {
                return Ok(());
            }
            let name = name.map_or_else(|| "unlisted content".to_owned(), |name| display_name(&name));
            let Some(stream) = &mut content else { continue };
            let mut member = Checked::new(Exactly::new(stream, length), crc);
            let whole = out.member(name, Some(length), &mut member);
            if !whole && !member.is_read() {
                // What the decoder fails at is behind for all files that follow.
                content = None;
            }
        }
        Ok(())
    }

    /// What a folder decodes to, if it can be read; its first file has `length` and `crc`.
    fn folder_content<'s>(
        &'s mut self,
        folder: &Folder,
        length: u64,
        crc: Option<u32>,
        out: &mut Out<'_, '_>,
    ) -> Option<Box<dyn Read + 's>> {
        match self.open(folder, length, crc) {
            Ok(Some(content)) => {
                if is_encrypted(folder) {
                    out.outcome.note_decrypted();
                }
                Some(content)
            }
            Ok(None) => {
                out.outcome.note_protected(Protection::Archive);
                None
            }
            Err(error) => {
                out.outcome.note_error("members can't be decoded", &error);
                None
            }
        }
    }

    /// Opens a folder, with the first password that fits if it needs one. None if none fits.
    fn open(&mut self, folder: &Folder, length: u64, crc: Option<u32>) -> io::Result<Option<Box<dyn Read + '_>>> {
        if !is_encrypted(folder) {
            let mut none = Keys::new("", self.budget);
            return open(folder, &self.input, SIGNATURE_HEADER_BYTES, &mut none).map(Some);
        }
        let known = self.keys.take().into_iter();
        let given = self.passwords.iter().map(|password| Keys::new(password, self.budget));
        for mut keys in known.chain(given) {
            match self.fits(folder, length, crc, &mut keys) {
                Ok(true) => {
                    let keys = self.keys.insert(keys);
                    return open(folder, &self.input, SIGNATURE_HEADER_BYTES, keys).map(Some);
                }
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether a password opens a folder: its first file decodes, and has the right checksum.
    fn fits(&self, folder: &Folder, length: u64, crc: Option<u32>, keys: &mut Keys<'b>) -> io::Result<bool> {
        let most = if is_compressed(folder) { length.min(TRIAL_BYTES_MAX) } else { length };
        let content = match open(folder, &self.input, SIGNATURE_HEADER_BYTES, keys) {
            Ok(content) => content,
            Err(error) if tells_of_password(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut content = Checked::new(Exactly::new(content, most), crc.filter(|_| most == length));
        let mut block = [0; 4096];
        loop {
            self.budget.check()?;
            match content.read(&mut block) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if tells_of_password(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether an error may come of a wrong password: all do but those of limits and of methods.
fn tells_of_password(error: &io::Error) -> bool {
    let other = Halt::of(error).is_some() || TooMuchMemory::of(error).is_some();
    !other && error.kind() != io::ErrorKind::Unsupported
}

/// The name of the next file that has content. Empty ones on the way are handed out.
fn next_with_stream(files: &mut Files<'_>, out: &mut Out<'_, '_>) -> Option<Vec<u8>> {
    while let Some(file) = files.next() {
        match file {
            File::WithStream(name) => return Some(name),
            File::Empty(name) => {
                out.member(display_name(&name), Some(0), &mut io::empty());
            }
            File::Directory => {}
        }
        if out.is_over() {
            return None;
        }
    }
    None
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
