//! Files of formats that are simple enough to be made by hand, around any content.

use std::io::Write;

/// A stream of zlib behind something else.
pub fn zlib(before: &[u8], content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(before.to_vec(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A section of OneNote with a file in it.
pub fn onenote(content: &[u8]) -> Vec<u8> {
    let mut file = b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3".to_vec();
    file.resize(1024, 0);
    file.extend_from_slice(b"\xe7\x16\xe3\xbd\x65\x26\x11\x45\xa4\xc4\x8d\x4d\x0b\x7a\x9e\xac");
    file.extend_from_slice(&(content.len() as u64).to_le_bytes());
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(content);
    file.extend_from_slice(b"\x22\xa7\xfb\x71\x79\x0f\x0b\x4a\xbb\x13\x89\x92\x56\x42\x6b\x24");
    let length = file.len() as u64;
    file[196..204].copy_from_slice(&length.to_le_bytes());
    file
}

/// What Word puts into web pages for a document's macros.
pub fn activemime(content: &[u8]) -> Vec<u8> {
    let mut file = b"ActiveMime\0\0\x01\xf0\x04\0\0\0".to_vec();
    file.resize(50, 0);
    zlib(&file, content)
}

/// What `openssl cms -sign -nodetach` leaves behind, without certificates.
pub fn cms(content: &[u8]) -> Vec<u8> {
    let value = |tag: u8, content: &[u8]| [&[tag, 0x84][..], &(content.len() as u32).to_be_bytes(), content].concat();
    let identifier = |kind: u8| [b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07", &[kind][..]].concat();
    let inner = value(0x30, &[identifier(1), value(0xa0, &value(0x04, content))].concat());
    let signed = value(0x30, &[value(2, &[1]), value(0x31, b""), inner, value(0x31, b"")].concat());
    value(0x30, &[identifier(2), value(0xa0, &signed)].concat())
}

/// A message of OpenPGP that is compressed and nothing else.
pub fn pgp(content: &[u8]) -> Vec<u8> {
    let literal = [&[0xcb, 255][..], &(content.len() as u32 + 7).to_be_bytes(), b"b\x01a\0\0\0\0", content].concat();
    let packed = zlib(b"\x02", &literal);
    [&[0xc8, 255][..], &(packed.len() as u32).to_be_bytes(), &packed].concat()
}

/// A program that PyInstaller made, with one file.
pub fn pyinstaller(content: &[u8]) -> Vec<u8> {
    let content = zlib(b"", content);
    let table =
        [&20u32.to_be_bytes()[..], &[0; 4], &(content.len() as u32).to_be_bytes(), &[0; 4], b"\x01ba\0"].concat();
    let mut end = b"MEI\x0c\x0b\x0a\x0b\x0e".to_vec();
    for number in [content.len() + table.len() + 88, content.len(), table.len(), 311] {
        end.extend_from_slice(&(number as u32).to_be_bytes());
    }
    end.resize(88, 0);
    [b"\x7fELF program", &content[..], &table, &end].concat()
}

/// The modules that such a program brings along.
pub fn pyz(content: &[u8]) -> Vec<u8> {
    let content = zlib(b"", content);
    let table = (17 + content.len() as u32).to_be_bytes();
    [b"PYZ\0\xa7\x0d\x0d\x0a", &table[..], &[0; 5], &content, b"[\0\0\0\0"].concat()
}

/// A program of .NET that brings it along.
pub fn dotnet(content: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"\x8b\x12\x02\xb9\x6a\x61\x20\x38\x72\x7b\x93\x02\x14\xd7\xa0\x32\
        \x13\xf5\xb9\xe6\xef\xae\x33\x18\xee\x3b\x2d\xce\x24\xb3\x6a\xae";
    // Of its zlib stream what is deflated.
    let packed = zlib(b"", content);
    let packed = &packed[2..packed.len() - 4];
    let table_at = (48 + packed.len()) as u64;
    let numbers = [48, content.len(), packed.len()].map(|number| (number as u64).to_le_bytes()).concat();
    let table =
        [&[6u32, 0, 1].map(u32::to_le_bytes).concat()[..], b"\x02id", &[0; 40], &numbers, b"\x01\x05a.dll"].concat();
    [b"\x7fELF\0\0\0\0", &table_at.to_le_bytes()[..], MARK, packed, &table].concat()
}

/// An archive of Electron's, with the content in a folder.
pub fn asar(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let directory = format!(
        "{{\"files\":{{\"a.txt\":{{\"size\":1,\"offset\":\"{length}\"}},\"folder\":{{\"files\":{{\"member\":{{\"size\":{length},\"offset\":\"0\"}}}}}}}}}}"
    );
    let text = directory.len() as u32;
    let padded = text.next_multiple_of(4);
    let header: Vec<u8> = [4, padded + 8, padded + 4, text].into_iter().flat_map(u32::to_le_bytes).collect();
    [&header, directory.as_bytes(), &vec![0; (padded - text) as usize], content, b"a"].concat()
}

/// AppleSingle with the content in the data fork, or AppleDouble with it in the resource fork; the other fork has a word.
pub fn appledouble(is_double: bool, content: &[u8]) -> Vec<u8> {
    let (magic, kind, other) = if is_double { (7, 2, 1) } else { (0, 1, 2) };
    let (length, offset) = (content.len() as u32, 26 + 2 * 12);
    let entries: Vec<u8> =
        [kind, offset + 4, length, other, offset, 4].into_iter().flat_map(u32::to_be_bytes).collect();
    [&[0, 5, 0x16, magic, 0, 2, 0, 0], &[0; 16][..], &[0, 2], &entries, b"fork", content].concat()
}
