//! Makes bombs that have much of what is told and not of content: members, folders, names.

use std::io::Write;

use lazaret_analysis::ResultCode;

use super::make::{GIB, MIB, lzma, number, seven_zip_encoded, streams, with_header};
use super::store::Make;
use super::{BROKEN, CLEAN, DEPTH};
use crate::common::gz;

const MEMBERS: u64 = 10_000_000;

/// The same bytes over and over, from some place on.
fn repeated(part: &[u8], offset: u64, into: &mut [u8]) {
    let rotated = part.iter().cycle().skip((offset % part.len() as u64) as usize).take(part.len());
    let rotated: Vec<u8> = rotated.copied().collect();
    into.chunks_mut(part.len()).for_each(|chunk| chunk.copy_from_slice(&rotated[..chunk.len()]));
}

/// The header of an empty member of a tape archive.
fn tar_header(kind: u8, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("member").unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A piece of a file of ten million members: parts of one length each, that know their number.
fn parts(length: u64, part: impl Fn(u64) -> Vec<u8>, mut offset: u64, mut into: &mut [u8]) {
    while !into.is_empty() {
        let bytes = part(offset / length);
        let from = &bytes[(offset % length) as usize..];
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        into = &mut into[count..];
        offset += count as u64;
    }
}

/// A number in eight decimal digits.
fn digits(mut number: u64) -> [u8; 8] {
    let mut digits = [b'0'; 8];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    digits
}

const ZIP_LOCAL: u64 = 38;
const ZIP_CENTRAL: u64 = 54;

fn zip_common(name_bytes: u16) -> Vec<u8> {
    let mut common = vec![0; 18];
    common.extend_from_slice(&name_bytes.to_le_bytes());
    common.extend_from_slice(&[0, 0]);
    common
}

/// The end of a ZIP file, with the records for large ones.
fn zip_end(count: u64, start: u64, length: u64) -> Vec<u8> {
    let mut end = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0".to_vec();
    for number in [count, count, length, start] {
        end.extend_from_slice(&number.to_le_bytes());
    }
    end.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    end.extend_from_slice(&(start + length).to_le_bytes());
    end.extend_from_slice(&[1, 0, 0, 0]);
    end.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    end.extend_from_slice(&[0xff; 12]);
    end.extend_from_slice(&[0, 0]);
    end
}

/// A ZIP file of empty members with names of one length: where its parts are, and what is in them.
fn zip_of_many(count: u64, name: impl Fn(u64) -> Vec<u8>, offset: u64, into: &mut [u8]) {
    let name_bytes = name(0).len() as u64;
    let (local, central) = (30 + name_bytes, 46 + name_bytes);
    let start = count * local;
    let end = start + count * central;
    let local_part = |at| [b"PK\x03\x04\x0a\0\0\0", &zip_common(name_bytes as u16)[..], &name(at)].concat();
    let central_part = |at| {
        let place = ((at * local) as u32).to_le_bytes();
        [b"PK\x01\x02\x0a\0\x0a\0\0\0", &zip_common(name_bytes as u16)[..], &[0; 10], &place, &name(at)].concat()
    };
    let (mut offset, mut into) = (offset, into);
    while !into.is_empty() {
        let (from, to) = if offset < start {
            (0, start)
        } else if offset < end {
            (start, end)
        } else {
            (end, u64::MAX)
        };
        let count_here = into.len().min(usize::try_from(to - offset).unwrap_or(usize::MAX));
        let (here, rest) = into.split_at_mut(count_here);
        match from {
            0 => parts(local, local_part, offset, here),
            from if from == start => parts(central, central_part, offset - start, here),
            _ => {
                let tail = zip_end(count, start, end - start);
                here.copy_from_slice(&tail[(offset - end) as usize..][..here.len()]);
            }
        }
        offset += count_here as u64;
        into = rest;
    }
}

type Made = (&'static str, u64, Make);

/// Ten million members, of each format that says little of each.
pub fn members() -> [Made; 3] {
    const CPIO: &[u8] =
        b"0707010000000100008180000000000000000000000001000000000000000000000000000000000000000000000000\
                          0000000200000000m\0";
    const AR: &[u8] = b"m/              0           0     0     100644  0         `\n";
    assert_eq!((CPIO.len(), AR.len()), (112, 60));
    [
        ("ten million in cpio", MEMBERS * 112, |offset, into| repeated(CPIO, offset, into)),
        ("ten million in ar", 8 + MEMBERS * 60, |offset, into| {
            const MAGIC: &[u8; 8] = b"!<arch>\n";
            let of_magic = MAGIC.get(offset as usize..).unwrap_or_default();
            let (head, members) = into.split_at_mut(of_magic.len().min(into.len()));
            head.copy_from_slice(&of_magic[..head.len()]);
            repeated(AR, (offset + head.len() as u64).saturating_sub(8), members);
        }),
        ("ten million in zip", MEMBERS * (ZIP_LOCAL + ZIP_CENTRAL) + 98, |offset, into| {
            zip_of_many(MEMBERS, |at| digits(at).to_vec(), offset, into)
        }),
    ]
}

/// The same as a tape archive, which says 512 bytes of each.
pub fn members_of_tar() -> (u64, Make) {
    (MEMBERS * 512, |offset, into| repeated(&tar_header(b'0', 0), offset, into))
}

/// Ten million members of a tape archive, compressed.
pub fn members_compressed() -> Vec<u8> {
    gz(&tar_header(b'0', 0).repeat(20_000)).repeat(500)
}

/// Empty files, of which 7z says no more than how many there are, in a header that is compressed.
pub fn empty_in_7z(count: u64) -> Vec<u8> {
    let bits = vec![0xff; count.div_ceil(8) as usize];
    let mut header = vec![1, 5];
    header.extend(number(count));
    // They have no content, and are no folders.
    for property in [14, 15] {
        header.push(property);
        header.extend(number(bits.len() as u64));
        header.extend_from_slice(&bits);
    }
    header.push(17);
    header.extend(number(1 + 4 * count));
    header.push(0);
    header.extend([b'e', 0, 0, 0].repeat(count as usize));
    header.extend_from_slice(&[0, 0]);
    seven_zip_encoded(&header)
}

/// Things in things in things, a hundred thousand deep, and how each ends.
pub fn deep() -> Vec<(&'static str, &'static [ResultCode], Vec<u8>)> {
    const DEPTH_MANY: usize = 100_000;
    let path = "d/".repeat(DEPTH_MANY);
    let mut tar = tar_header(b'L', path.len() as u64);
    tar.extend_from_slice(path.as_bytes());
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend_from_slice(&tar_header(b'0', 0));
    tar.extend_from_slice(&[0; 1024]);
    let mut parts = b"From: a@b\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b0\r\n\r\n".to_vec();
    for depth in 0..DEPTH_MANY {
        write!(parts, "--b{depth}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n", depth + 1).unwrap();
    }
    let array = [b"[".repeat(DEPTH_MANY), b"]".repeat(DEPTH_MANY)].concat();
    let dictionary = [b"<</a".repeat(DEPTH_MANY), b" 1".to_vec(), b">>".repeat(DEPTH_MANY)].concat();
    let document = |object: &[u8]| [b"%PDF-1.4\n1 0 obj\n", object, b"\nendobj\nstartxref\n0\n%%EOF\n"].concat();
    let groups = [b"{\\rtf1 ".to_vec(), b"{\\object".repeat(DEPTH_MANY), b"}".repeat(DEPTH_MANY + 1)].concat();
    vec![
        ("100,000 folders in tar", &[CLEAN, BROKEN], tar),
        ("100,000 folders in exFAT", &[CLEAN], exfat(DEPTH_MANY as u32)),
        ("100,000 multiparts in mail", &[BROKEN, DEPTH], parts),
        ("100,000 arrays in pdf", &[CLEAN, BROKEN], document(&array)),
        ("100,000 dictionaries in pdf", &[CLEAN, BROKEN], document(&dictionary)),
        ("100,000 groups in rtf", &[CLEAN, BROKEN], groups),
    ]
}

/// A folder in a folder in a folder, each but the last in a cluster of its own.
fn exfat(depth: u32) -> Vec<u8> {
    const CLUSTER: usize = 512;
    // The boot sector says all that is read of it; folders lie one behind the other, without chains.
    let mut image = vec![0; CLUSTER * (depth as usize + 8)];
    image[3..11].copy_from_slice(b"EXFAT   ");
    for (at, number) in [(80, 1), (88, 4), (92, depth + 2), (96, 2)] {
        image[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    image[108] = 9;
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    // The root's chain ends with itself.
    image[CLUSTER + 8..CLUSTER + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    for at in 0..=depth {
        let is_last = at == depth;
        let (cluster, length) = if is_last { (2, 5) } else { (at + 3, CLUSTER as u64) };
        let entry = &mut image[CLUSTER * (4 + at as usize)..][..CLUSTER];
        (entry[0], entry[1], entry[4]) = (0x85, 2, if is_last { 0 } else { 16 });
        (entry[32], entry[33], entry[35]) = (0xc0, 3, 1);
        entry[40..48].copy_from_slice(&length.to_le_bytes());
        entry[52..56].copy_from_slice(&u32::to_le_bytes(cluster));
        entry[56..64].copy_from_slice(&length.to_le_bytes());
        (entry[64], entry[66]) = (0xc1, if is_last { b'f' } else { b'd' });
    }
    image
}

/// The gzip of a tar that says a thousand names of a megabyte each.
pub fn names_in_tar_gz() -> Vec<u8> {
    let mut name = tar_header(b'L', MIB as u64);
    name.resize(512 + MIB, b'n');
    name.extend_from_slice(&tar_header(b'0', 0));
    gz(&name).repeat(1024)
}

/// A header that decodes to 1 GiB, of which the beginning is said to be names.
pub fn names_in_7z() -> Vec<u8> {
    let mut header = vec![1, 5];
    header.extend(number(1 << 20));
    header.push(17);
    header.extend(number(GIB));
    header.resize(64 * MIB, b'n');
    let (packed, properties) = lzma(&header);
    let mut encoded = vec![23];
    encoded.extend(streams(&[3, 1, 1], &properties, packed.len() as u64, GIB));
    with_header(&packed, &encoded)
}

/// A ZIP file with sixteen thousand names of 65,535 bytes.
pub fn names_in_zip() -> (u64, Make) {
    const NAMES: u64 = GIB / 65_535 + 1;
    let make: Make = |offset, into| {
        zip_of_many(NAMES, |at| [&digits(at)[..], &[b'n'; 65_535 - 8]].concat(), offset, into);
    };
    (NAMES * (30 + 65_535 + 46 + 65_535) + 98, make)
}
