//! Makes bombs that become much of one thing, quickly: zeros in every compressor, holes, members that are each other, and dictionaries.

use std::io::Write;

use ppmd_rust::Ppmd7Encoder;

use super::cabinets::{BLOCK_BYTES, Folder, LZX, MSZIP, QUANTUM, cabinet, lzx_zeros, quantum};
use super::samples;
use crate::common::{bz2, gz, xz, zip, zst};

pub const MIB: usize = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// How much is compressed where compressed pieces can be put together, which come to 4 GiB if they are 64.
const PIECE: usize = 64 * MIB;

fn sample(name: &str) -> Vec<u8> {
    samples::SAMPLES.iter().find(|sample| sample.name == name).unwrap().file()
}

pub fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A central directory whose entries all lead to one member.
pub fn overlapping(entries: u16) -> Vec<u8> {
    let mut file = zip(&[("a", &vec![0; MIB])]);
    let end = file.len() - 22;
    let start = u32::from_le_bytes(file[end + 16..end + 20].try_into().unwrap()) as usize;
    let header = file[start..end].to_vec();
    let mut tail = file[end..].to_vec();
    file.truncate(start);
    for _ in 0..entries {
        file.extend_from_slice(&header);
    }
    let length = (file.len() - start) as u32;
    tail[8..10].copy_from_slice(&entries.to_le_bytes());
    tail[10..12].copy_from_slice(&entries.to_le_bytes());
    tail[12..16].copy_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&tail);
    file
}

/// A gzip file that is its own content: it is in itself, without end. After Russ Cox, "Zip Files All The Way Down".
pub fn quine() -> Vec<u8> {
    // The time in the header is free, so it is what makes the checksum 0: each of its bits changes that in its own way.
    let sum = |time| crc(&quine_of(time));
    let base = sum(0);
    let mut ways: Vec<(u32, u32)> = (0..32).map(|bit| (sum(1 << bit) ^ base, 1 << bit)).collect();
    let (mut rest, mut time) = (base, 0);
    for bit in 0..32 {
        let Some(at) = ways.iter().position(|(way, _)| way >> bit & 1 == 1) else { continue };
        let (way, with) = ways.swap_remove(at);
        for other in ways.iter_mut().filter(|(other, _)| other >> bit & 1 == 1) {
            *other = (other.0 ^ way, other.1 ^ with);
        }
        if rest >> bit & 1 == 1 {
            (rest, time) = (rest ^ way, time ^ with);
        }
    }
    assert_eq!(rest, 0, "no time makes the checksum 0");
    let quine = quine_of(time);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&quine[..]), &mut content).unwrap();
    assert!(content == quine);
    quine
}

/// The same with this time in its header, whatever the checksum of it is.
fn quine_of(time: u32) -> Vec<u8> {
    // What comes as it is: so many units of five bytes; and a copy of the last four units: two copies of ten bytes, and the block's end.
    let literal = |units: u16| [&[0][..], &(units * 5).to_le_bytes(), &(!(units * 5)).to_le_bytes()].concat();
    let mut bits = Bits::new(false);
    bits.put(0b010, 3);
    for _ in 0..2 {
        bits.put(0b000_1000, 7);
        bits.put(0b0_0010, 5);
        bits.put(3, 3);
    }
    bits.put(0, 7);
    let (zero, one, four, copy) = (literal(0), literal(1), literal(4), bits.bytes);
    let head = [&b"\x1f\x8b\x08\x08"[..], &time.to_le_bytes(), b"\0\x03q.gz\0"].concat();
    // An empty block, an empty last one, the checksum and the length.
    let tail = |length: u32| [&zero[..], &[3, 0, 0, 0, 0, 0], &length.to_le_bytes()].concat();
    let whole = |length| {
        let tail = tail(length);
        let parts: [&[&[u8]]; 11] = [
            &[&head, &four, &head, &four, &copy],
            &[&one, &copy],
            &[&one, &one],
            &[&four, &copy, &one, &one, &four],
            &[&copy],
            &[&four, &copy, &four, &copy, &four],
            &[&copy],
            &[&four, &copy, &zero, &zero, &four],
            &[&copy],
            &[&zero, &zero, &four, &copy, &tail],
            &[&copy, &tail],
        ];
        parts.concat().concat()
    };
    whole(whole(0).len() as u32)
}

/// Bits, put into bytes from the least or the most significant on.
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
    high_first: bool,
}

impl Bits {
    fn new(high_first: bool) -> Self {
        Self { bytes: Vec::new(), held: 0, count: 0, high_first }
    }

    fn put(&mut self, value: u64, width: u32) {
        if self.high_first {
            self.held = self.held << width | value;
        } else {
            self.held |= value << self.count;
        }
        self.count += width;
        while self.count >= 8 {
            self.count -= 8;
            if self.high_first {
                self.bytes.push((self.held >> self.count) as u8);
                self.held &= (1 << self.count) - 1;
            } else {
                self.bytes.push(self.held as u8);
                self.held >>= 8;
            }
        }
    }

    fn pad(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
    }
}

/// Makes a bomb of so many times 64 MiB.
pub type MakeZeros = fn(usize) -> Vec<u8>;

/// Zeros, or as much of them as one stream of the format can say, by every compressor that can be had or written down in a few lines.
pub const ZEROS: [(&str, MakeZeros); 26] = [
    ("zeros in gz", |pieces| gz(&piece()).repeat(pieces)),
    ("zeros in bz2", |pieces| bz2(&piece()).repeat(pieces)),
    ("zeros in xz", |pieces| xz(&piece()).repeat(pieces)),
    ("zeros in zstd", |pieces| zst(&piece()).repeat(pieces)),
    ("zeros in lz4", lz4),
    ("zeros in Z", compress),
    ("zeros in lzip", |pieces| lzip(&piece()).repeat(pieces)),
    ("zeros in lzma", |_| {
        let (data, properties) = lzma(&piece());
        [&properties[..], &[0xff; 8], &data].concat()
    }),
    ("zeros in lzh", lzh),
    ("zeros in zip, deflate", |pieces| zip_of(8, &deflate(pieces), 4 * GIB - 1)),
    ("zeros in zip, deflate64", |pieces| zip_of(9, &deflate64(pieces), 4 * GIB - 1)),
    ("zeros in zip, bzip2", |pieces| zip_of(12, &bz2(&piece()).repeat(pieces), 4 * GIB - 1)),
    ("zeros in zip, lzma", |_| {
        let (data, properties) = lzma(&piece());
        zip_of(14, &[&[9, 20, 5, 0], &properties[..], &data].concat(), 4 * GIB - 1)
    }),
    ("zeros in zip, zstd", |pieces| zip_of(93, &zst(&piece()).repeat(pieces), 4 * GIB - 1)),
    ("zeros in zip, xz", |pieces| zip_of(95, &xz(&piece()).repeat(pieces), 4 * GIB - 1)),
    ("zeros in 7z, lzma", |_| {
        let (data, properties) = lzma(&piece());
        seven_zip(&[3, 1, 1], &properties, &data, PIECE as u64)
    }),
    ("zeros in 7z, bzip2", |_| seven_zip(&[4, 2, 2], &[], &bz2(&piece()), PIECE as u64)),
    ("zeros in 7z, deflate", |pieces| seven_zip(&[4, 1, 8], &[], &deflate(pieces), (PIECE * pieces) as u64)),
    ("zeros in 7z, deflate64", |pieces| seven_zip(&[4, 1, 9], &[], &deflate64(pieces), (PIECE * pieces) as u64)),
    ("zeros in 7z, ppmd", |_| seven_zip(&[3, 4, 1], &[6, 0, 0, 16, 0], &ppmd(&piece()[..PIECE / 4]), PIECE as u64 / 4)),
    ("zeros in cab, MSZIP", |pieces| cab(MSZIP, vec![(mszip_block(), 32_768); blocks(pieces)])),
    ("zeros in cab, Quantum", |_| cab(QUANTUM, quantum(&piece()[..PIECE / 4]))),
    ("zeros in cab, LZX", |pieces| cab(LZX, lzx_zeros(blocks(pieces)))),
    ("4 GiB of zeros in squashfs", |_| twice_packed(include_str!("squashfs-dense.hex"))),
    ("zeros in pdf, deflate twice", |_| pdf(&piece())),
    ("zeros in a program, UPX", |_| upx(&piece())),
];

fn piece() -> Vec<u8> {
    vec![0; PIECE]
}

/// How many blocks of a cabinet's folder come to half of so many pieces, as far as a folder may have them.
fn blocks(pieces: usize) -> usize {
    (PIECE * pieces / 2 / BLOCK_BYTES).min(65_535)
}

/// Files that are holes for the most part.
pub fn holes() -> Vec<(&'static str, Vec<u8>)> {
    let mut ext = sample("ext2");
    let at = ext.windows(8).position(|inode| inode[..4] == 2337u32.to_le_bytes()).unwrap();
    ext[at + 104..at + 108].copy_from_slice(&1u32.to_le_bytes());
    // A hole and no threat.
    let threat = ext.windows(68).position(|bytes| bytes == crate::common::eicar()).unwrap();
    ext[threat] = b' ';
    vec![
        ("a hole of 4 GiB in ext2", ext),
        ("a hole of 4 GiB in squashfs", samples::unpack(include_str!("squashfs-sparse.hex"))),
        ("a chunk of 4 GiB in DMG", dmg()),
    ]
}

/// 4 GiB that are told as somewhat less than a hundred times what there is: twelve mebibytes of noise, and zeros.
pub fn below_the_ratio() -> Vec<u8> {
    let mut noise = Vec::new();
    let mut random = lazaret_containers::conformance::Random(7);
    while noise.len() < 12 * MIB {
        noise.extend_from_slice(&random.next().to_le_bytes());
    }
    [gz(&noise), gz(&piece()).repeat(64)].concat()
}

fn twice_packed(digits: &str) -> Vec<u8> {
    let mut file = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&samples::unpack(digits)[..]), &mut file).unwrap();
    file
}

/// Raw deflate: pieces that end on a byte's boundary and are not the last, then an empty last one.
fn deflate(pieces: usize) -> Vec<u8> {
    let zeros = piece();
    let mut state = flate2::Compress::new(flate2::Compression::best(), false);
    let mut packed = Vec::with_capacity(zeros.len() / 64);
    state.compress_vec(&zeros, &mut packed, flate2::FlushCompress::Full).unwrap();
    assert_eq!(state.total_in(), zeros.len() as u64);
    [packed.repeat(pieces), vec![3, 0]].concat()
}

/// One block with the fixed codes: a zero, and copies of 65,538 bytes from one byte before.
fn deflate64(pieces: usize) -> Vec<u8> {
    let mut bits = Bits::new(false);
    bits.put(0b011, 3);
    // Codes are put with their highest bit first: 48 for a zero, 197 for the length 285, 0 for the distance 1.
    let reversed = |code: u64, width: u32| code.reverse_bits() >> (64 - width);
    bits.put(reversed(0x30, 8), 8);
    for _ in 0..PIECE * pieces / 65_538 {
        bits.put(reversed(0b1100_0101, 8), 8);
        bits.put(65_535, 16);
        bits.put(0, 5);
    }
    bits.put(0, 7);
    bits.pad();
    bits.bytes
}

/// LZMA without a header, and its properties.
pub fn lzma(zeros: &[u8]) -> (Vec<u8>, [u8; 5]) {
    let options = lzma_rust2::LzmaOptions::with_preset(0);
    let mut writer = lzma_rust2::LzmaWriter::new_no_header(Vec::new(), &options, true).unwrap();
    writer.write_all(zeros).unwrap();
    let [a, b, c, d] = options.dict_size.to_le_bytes();
    (writer.finish().unwrap(), [options.get_props(), a, b, c, d])
}

fn lzip(zeros: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::LzipWriter::new(Vec::new(), lzma_rust2::LzipOptions::with_preset(0));
    writer.write_all(zeros).unwrap();
    writer.finish().unwrap()
}

fn ppmd(zeros: &[u8]) -> Vec<u8> {
    let mut encoder = Ppmd7Encoder::new(Vec::new(), 6, 1 << 20).unwrap();
    encoder.write_all(zeros).unwrap();
    encoder.finish(false).unwrap()
}

/// A frame of blocks of 4 MiB.
fn lz4(pieces: usize) -> Vec<u8> {
    let block = lz4_flex::block::compress(&vec![0; 4 * MIB]);
    let descriptor = [0x60, 0x70];
    let sum = twox_hash::XxHash32::oneshot(0, &descriptor).to_le_bytes()[1];
    let mut frame = [&[4, 0x22, 0x4d, 0x18], &descriptor[..], &[sum]].concat();
    for _ in 0..pieces * 16 {
        frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
        frame.extend_from_slice(&block);
    }
    frame.extend_from_slice(&[0; 4]);
    frame
}

/// LZW: each code stands for a zero more than the one before, and then the longest comes again and again.
fn compress(pieces: usize) -> Vec<u8> {
    let mut bits = Bits::new(false);
    bits.put(0, 9);
    // Codes come in groups of eight, which the table's length makes whole here.
    let (mut next, mut width, mut in_group) = (257u32, 9u32, 1u32);
    while next < 1 << 16 {
        if next > (1 << width) - 1 && width < 16 {
            while in_group % 8 != 0 {
                bits.put(0, width);
                in_group += 1;
            }
            width += 1;
        }
        bits.put(next.into(), width);
        (next, in_group) = (next + 1, in_group + 1);
    }
    for _ in 0..PIECE * pieces / 65_000 {
        bits.put((1 << 16) - 1, 16);
    }
    [b"\x1f\x9d\x90".to_vec(), bits.bytes].concat()
}

/// `lh5`: blocks of 65,535 copies of 256 bytes, whose three trees have one code each, of no bits.
fn lzh(pieces: usize) -> Vec<u8> {
    let mut bits = Bits::new(true);
    for _ in 0..PIECE * pieces / (65_535 * 256) {
        bits.put(65_535, 16);
        // No lengths of code lengths, the one of them; the same for codes, 509 being a copy of 256; and for distances, 0 being 1.
        for (value, width) in [(0, 5), (0, 5), (0, 9), (509, 9), (0, 4), (0, 4)] {
            bits.put(value, width);
        }
    }
    bits.pad();
    let data = bits.bytes;
    let mut header = b"-lh5-".to_vec();
    header.extend_from_slice(&(data.len() as u32).to_le_bytes());
    header.extend_from_slice(&(4 * GIB - 1).to_le_bytes()[..4]);
    header.extend_from_slice(&[0, 0, 0, 0, 0x20, 0, 1, b'z', 0, 0]);
    let sum = header.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [&[header.len() as u8, sum], &header[..], &data, &[0]].concat()
}

/// A ZIP file of one member that was compressed elsewhere.
fn zip_of(method: u16, data: &[u8], length: u64) -> Vec<u8> {
    let mut common = method.to_le_bytes().to_vec();
    common.extend_from_slice(&[0; 8]);
    common.extend_from_slice(&(data.len() as u32).to_le_bytes());
    common.extend_from_slice(&(length as u32).to_le_bytes());
    common.extend_from_slice(&[6, 0, 0, 0]);
    let mut file = [b"PK\x03\x04\x3f\0\0\0", &common[..], b"member", data].concat();
    let start = file.len() as u32;
    file.extend([b"PK\x01\x02\x3f\0\x3f\0\0\0", &common[..], &[0; 14], b"member"].concat());
    let bytes = file.len() as u32 - start;
    file.extend([b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &bytes.to_le_bytes()[..], &start.to_le_bytes(), b"\0\0"].concat());
    file
}

pub fn number(number: u64) -> Vec<u8> {
    [&[0xff], &number.to_le_bytes()[..]].concat()
}

/// What 7z tells of one folder: where its packed stream is, how it is coded and how long it gets.
pub fn streams(method: &[u8], properties: &[u8], packed_bytes: u64, length: u64) -> Vec<u8> {
    let has_properties = if properties.is_empty() { 0 } else { 0x20 };
    let mut info = vec![6, 0, 1, 9];
    info.extend(number(packed_bytes));
    info.extend_from_slice(&[0, 7, 11, 1, 0, 1, method.len() as u8 | has_properties]);
    info.extend_from_slice(method);
    if !properties.is_empty() {
        info.push(properties.len() as u8);
        info.extend_from_slice(properties);
    }
    info.push(12);
    info.extend(number(length));
    info.extend_from_slice(&[0, 0]);
    info
}

pub fn with_header(packed: &[u8], header: &[u8]) -> Vec<u8> {
    let start =
        [&(packed.len() as u64).to_le_bytes()[..], &(header.len() as u64).to_le_bytes(), &crc(header).to_le_bytes()];
    let start = start.concat();
    [b"7z\xbc\xaf\x27\x1c\0\x04", &crc(&start).to_le_bytes()[..], &start, packed, header].concat()
}

/// A 7z archive of one member that was compressed elsewhere.
fn seven_zip(method: &[u8], properties: &[u8], packed: &[u8], length: u64) -> Vec<u8> {
    let mut header = vec![1, 4];
    header.extend(streams(method, properties, packed.len() as u64, length));
    header.extend_from_slice(&[5, 1, 17, 5, 0, b'z', 0, 0, 0, 0, 0]);
    with_header(packed, &header)
}

/// A 7z archive whose header is compressed.
pub fn seven_zip_encoded(header: &[u8]) -> Vec<u8> {
    let (packed, properties) = lzma(header);
    let mut encoded = vec![23];
    encoded.extend(streams(&[3, 1, 1], &properties, packed.len() as u64, header.len() as u64));
    with_header(&packed, &encoded)
}

/// A cabinet of two folders with one file each, made of these blocks: two halves of 4 GiB.
fn cab(method: u16, blocks: Vec<(Vec<u8>, u16)>) -> Vec<u8> {
    let folder = |name| Folder { method, blocks: blocks.clone(), name };
    cabinet(&[folder("one"), folder("other")])
}

fn mszip_block() -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(b"CK".to_vec(), flate2::Compression::best());
    encoder.write_all(&[0; 32_768]).unwrap();
    encoder.finish().unwrap()
}

/// A stream of a PDF that was deflated twice.
fn pdf(zeros: &[u8]) -> Vec<u8> {
    let zlib = |content: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let data = zlib(&zlib(zeros));
    let before =
        format!("%PDF-1.4\n1 0 obj\n<< /Filter [/FlateDecode /FlateDecode] /Length {} >>\nstream\n", data.len());
    [before.as_bytes(), &data, b"\nendstream\nendobj\nstartxref\n0\n%%EOF\n"].concat()
}

/// A program for Linux in one block, which LZMA packed.
fn upx(zeros: &[u8]) -> Vec<u8> {
    let (data, properties) = lzma(zeros);
    let (lc, lp, pb) = (properties[0] % 9, properties[0] / 9 % 5, properties[0] / 45);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[32] = 64;
    file.extend_from_slice(b"\0\0\0\0UPX!\0\0\x0d\x16");
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(&(zeros.len() as u32).to_le_bytes());
    file.extend_from_slice(&(data.len() as u32 + 2).to_le_bytes());
    file.extend_from_slice(&[14, 0, 0, 0, (lc + lp) << 3 | pb, lp << 4 | lc]);
    [file, data, vec![0; 12]].concat()
}

/// A disk image of one chunk that is said to be zeros.
fn dmg() -> Vec<u8> {
    let sectors = 4 * GIB / 512;
    let mut table = b"mish\0\0\0\x01".to_vec();
    table.extend_from_slice(&0u64.to_be_bytes());
    table.extend_from_slice(&sectors.to_be_bytes());
    table.resize(200, 0);
    table.extend_from_slice(&2u32.to_be_bytes());
    table.extend_from_slice(&[0; 8]);
    table.extend([0, sectors, 0, 0].into_iter().flat_map(u64::to_be_bytes));
    table.extend_from_slice(&u32::MAX.to_be_bytes());
    table.extend_from_slice(&[0; 36]);
    let mut list =
        b"<?xml version=\"1.0\"?>\n<plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key>\n<array>\
                     <dict><key>Data</key><data>\n"
            .to_vec();
    list.extend_from_slice(base64::encode(&table).as_bytes());
    list.extend_from_slice(b"\n</data></dict></array></dict></dict></plist>\n");
    let mut trailer = b"koly\0\0\0\x04\0\0\x02\0".to_vec();
    trailer.resize(512, 0);
    trailer[60..64].copy_from_slice(&1u32.to_be_bytes());
    trailer[224..232].copy_from_slice(&(list.len() as u64).to_be_bytes());
    [list, trailer].concat()
}

#[path = "../../../containers/tests/base64/mod.rs"]
mod base64;

/// What says that its decoder needs 4 GiB, or as much as the format can say.
pub fn dictionaries() -> Vec<(&'static str, Vec<u8>)> {
    let (data, mut properties) = lzma(b"content");
    properties[1..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut stream = xz(b"content");
    // The block header behind the stream's: its length, flags, the filter's id, the length of its properties, the dictionary.
    assert_eq!(stream[14..16], [0x21, 1]);
    stream[16] = 40;
    let length = (usize::from(stream[12]) + 1) * 4;
    let sum = crc(&stream[12..12 + length - 4]);
    stream[12 + length - 4..12 + length].copy_from_slice(&sum.to_le_bytes());
    // A frame header with a window of 2^31 bytes, and an empty last block.
    let zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    // A block of LZMA2 that begins anew, stored.
    let lzma2 = b"\x01\0\x06content\0";
    let ppmd = [&[6][..], &u32::MAX.to_le_bytes()].concat();
    vec![
        ("4 GiB dictionary in 7z", seven_zip(&[3, 1, 1], &properties, &data, 7)),
        ("4 GiB dictionary, 7z LZMA2", seven_zip(&[0x21], &[40], lzma2, 7)),
        ("4 GiB model, 7z PPMd", seven_zip(&[3, 4, 1], &ppmd, &[0; 20], 7)),
        ("4 GiB dictionary in lzma", [&properties[..], &[0xff; 8], &data].concat()),
        ("4 GiB dictionary in xz", stream),
        ("2 GiB window in zstd", zstd),
        ("4 GiB dictionary in zip", zip_of(14, &[&[9, 20, 5, 0], &properties[..], &data].concat(), 7)),
    ]
}
