//! What is special about Outlook's messages among compound files: properties are streams with names made of numbers, and the text is
//! compressed in a way of its own. Formats: [MS-OXMSG], [MS-OXRTFCP].

use std::io;

use crate::fields::{cut_off, invalid, le32};

/// How a property's stream is named, before its number and type.
pub(super) const PROPERTY: &str = "__substg1.0_";
/// An attachment's content (PidTagAttachDataBinary).
pub(super) const ATTACHMENT: &str = "37010102";
/// The message's text, compressed (PidTagRtfCompressed).
pub(super) const TEXT_COMPRESSED: &str = "10090102";
/// What an attachment's name may be in, the best first: long name, short name, display name; UTF-16 or in a code page.
pub(super) const ATTACHMENT_NAMES: [&str; 6] = ["3707001F", "3707001E", "3704001F", "3704001E", "3001001F", "3001001E"];

/// What the dictionary holds before the first byte.
const DICTIONARY: &[u8; 207] = b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}{\\f0\\fnil \\froman \\fswiss \\fmodern \\fscript \\fdecor MS Sans SerifSymbolArialTimes New RomanCourier{\\colortbl\\red0\\green0\\blue0\r\n\\par \\pard\\plain\\f0\\fs20\\b\\i\\u\\tab\\tx";
const DICTIONARY_BYTES: usize = 4096;
/// The longest compressed text that is decompressed in memory; what it becomes is at most nine times as long.
pub(super) const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Decompresses a text. What could be decompressed comes out even if the rest is broken.
pub(crate) fn decompress(data: &[u8]) -> (Vec<u8>, io::Result<()>) {
    const COMPRESSED: u32 = 0x7546_5a4c;
    const STORED: u32 = 0x414c_454d;
    let content = data.get(16..).unwrap_or_default();
    match (le32(data, 8), le32(data, 4)) {
        (Some(STORED), Some(length)) => match content.get(..length as usize) {
            Some(content) => (content.to_vec(), Ok(())),
            None => (content.to_vec(), Err(cut_off("the text is cut off"))),
        },
        (Some(COMPRESSED), Some(length)) => decompress_tokens(content, length as usize),
        _ => (Vec::new(), Err(invalid("no compressed text"))),
    }
}

fn decompress_tokens(data: &[u8], length: usize) -> (Vec<u8>, io::Result<()>) {
    let mut dictionary = [0u8; DICTIONARY_BYTES];
    for (byte, known) in dictionary.iter_mut().zip(DICTIONARY) {
        *byte = *known;
    }
    let mut write = DICTIONARY.len();
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, write: &mut usize, dictionary: &mut [u8; DICTIONARY_BYTES], byte| {
        dictionary[*write % DICTIONARY_BYTES] = byte;
        *write = (*write + 1) % DICTIONARY_BYTES;
        out.push(byte);
    };
    let mut bytes = data.iter().copied();
    while out.len() < length {
        let Some(flags) = bytes.next() else { return (out, Err(cut_off("the text is cut off"))) };
        for bit in 0..8 {
            if flags & (1 << bit) == 0 {
                let Some(byte) = bytes.next() else { return (out, Err(cut_off("the text is cut off"))) };
                put(&mut out, &mut write, &mut dictionary, byte);
                continue;
            }
            let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else {
                return (out, Err(cut_off("the text is cut off")));
            };
            let token = usize::from(u16::from_be_bytes([high, low]));
            let from = token >> 4;
            if from == write {
                return (out, Ok(()));
            }
            for at in from..from + (token & 15) + 2 {
                let byte = dictionary[at % DICTIONARY_BYTES];
                put(&mut out, &mut write, &mut dictionary, byte);
            }
        }
    }
    (out, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_decompresses() {
        // [MS-OXRTFCP] 3.1.1 and 3.1.2.
        let data = b"\x2d\0\0\0\x2b\0\0\0LZFu\xf1\xc5\xc7\xa7\x03\x00\x0a\x00\x72\x63\x70\x67\x31\x32\x35\x42\x32\x0a\xf3\x20\x68\x65\x6c\x09\x00\x20\x62\x77\x05\xb0\x6c\x64\x7d\x0a\x80\x0f\xa0";
        let (text, end) = decompress(data);
        assert_eq!(text, b"{\\rtf1\\ansi\\ansicpg1252\\pard hello world}\r\n");
        end.unwrap();
        let repeated =
            b"\x1a\0\0\0\x1c\0\0\0LZFu\xe2\xd4\x4b\x51\x41\x00\x04\x20\x57\x58\x59\x5a\x0d\x6e\x7d\x01\x0e\xb0";
        let (text, end) = decompress(repeated);
        assert_eq!(text, b"{\\rtf1 WXYZWXYZWXYZWXYZWXYZ}");
        end.unwrap();
        assert!(decompress(&data[..30]).1.is_err());
    }
}
