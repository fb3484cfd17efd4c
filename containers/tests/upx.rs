//! Programs as UPX packs them. The packers are written here; each variant of them is told apart by how it says offsets and lengths.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::io::Write;

use lazaret_containers::conformance::{self, Case, Random, eicar, take_apart};
use lazaret_containers::{Limit, Passwords};

const ROUNDS: u32 = 300;

#[derive(Clone, Copy, PartialEq)]
enum Variant {
    B,
    D,
    E,
}

/// Bytes, and bits that come in words between them: a word is where its first bit is needed.
struct Packer {
    out: Vec<u8>,
    word_bytes: usize,
    word_at: usize,
    word: u32,
    left: u32,
}

impl Packer {
    fn bit(&mut self, bit: usize) {
        if self.left == 0 {
            (self.word_at, self.word, self.left) = (self.out.len(), 0, 8 * self.word_bytes as u32);
            self.out.resize(self.word_at + self.word_bytes, 0);
        }
        self.left -= 1;
        self.word |= (bit as u32) << self.left;
        self.out[self.word_at..self.word_at + self.word_bytes]
            .copy_from_slice(&self.word.to_le_bytes()[..self.word_bytes]);
    }

    /// Each bit below the highest, and whether it is the last.
    fn number(&mut self, number: usize) {
        for at in (0..number.ilog2()).rev() {
            self.bit(number >> at & 1);
            self.bit(usize::from(at == 0));
        }
    }

    fn denser_number(&mut self, number: usize, is_last: bool) {
        let before = number >> 1;
        if before > 1 {
            self.denser_number((before >> 1) + 1, false);
            self.bit(before & 1);
        }
        self.bit(number & 1);
        self.bit(usize::from(is_last));
    }

    fn place(&mut self, variant: Variant, told: usize) {
        match variant {
            Variant::B => self.number(told / 256 + 3),
            _ => self.denser_number(told / 256 + 3, true),
        }
        self.out.push(told as u8);
    }

    fn copy(&mut self, variant: Variant, offset: usize, length: usize, last: &mut usize) {
        self.bit(0);
        let far = offset > if variant == Variant::B { 0xd00 } else { 0x500 };
        let rest = length - 1 - usize::from(far);
        let first = match variant {
            Variant::E => usize::from(rest <= 2),
            _ => {
                if rest <= 3 {
                    rest >> 1
                } else {
                    0
                }
            }
        };
        if offset == *last {
            match variant {
                Variant::B => self.number(2),
                _ => self.denser_number(2, true),
            }
            self.bit(first);
        } else if variant == Variant::B {
            self.place(variant, offset - 1);
            self.bit(first);
        } else {
            self.place(variant, (offset - 1) << 1 | (1 - first));
        }
        *last = offset;
        match (variant, rest) {
            (Variant::E, 1 | 2) => self.bit(rest - 1),
            (Variant::E, 3 | 4) => [1, rest - 3].into_iter().for_each(|bit| self.bit(bit)),
            (Variant::E, _) => {
                self.bit(0);
                self.number(rest - 3);
            }
            (_, 1..=3) => self.bit(rest & 1),
            _ => {
                self.bit(0);
                self.number(rest - 2);
            }
        }
    }
}

fn nrv(content: &[u8], variant: Variant, word_bytes: usize) -> Vec<u8> {
    let mut packer = Packer { out: vec![], word_bytes, word_at: 0, word: 0, left: 0 };
    let (mut at, mut last, mut seen) = (0, 1, HashMap::new());
    while at < content.len() {
        let from = content.get(at..at + 4).and_then(|four| seen.insert(four, at));
        let alike = |from: usize| (at..content.len()).take_while(|to| content[*to] == content[from + to - at]).count();
        match from.map(|from| (at - from, alike(from))).filter(|(_, length)| *length >= 4) {
            Some((offset, length)) => {
                packer.copy(variant, offset, length, &mut last);
                at += length;
            }
            None => {
                packer.bit(1);
                packer.out.push(content[at]);
                at += 1;
            }
        }
    }
    packer.bit(0);
    packer.place(variant, u32::MAX as usize);
    packer.out
}

fn lzma(content: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::LzmaOptions::with_preset(6);
    let mut writer = lzma_rust2::LzmaWriter::new_no_header(Vec::new(), &options, false).unwrap();
    writer.write_all(content).unwrap();
    let (lc, lp, pb) = (options.lc as u8, options.lp as u8, options.pb as u8);
    [vec![(lc + lp) << 3 | pb, lp << 4 | lc], writer.finish().unwrap()].concat()
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Every method by its number.
fn packed(content: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let variants = [(2, Variant::B), (5, Variant::D), (8, Variant::E)];
    let widths = [(0, 4), (1, 1), (2, 2)];
    let mut all: Vec<_> = variants
        .into_iter()
        .flat_map(|(number, variant)| widths.map(|(more, width)| (number + more, nrv(content, variant, width))))
        .collect();
    all.extend([(14, lzma(content)), (15, deflate(content))]);
    all
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1u32, 0u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

/// A Windows program of two sections: one that takes no place, and one of packed data, behind the header of UPX.
fn windows(method: u8, data: &[u8], length: usize) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[..2].copy_from_slice(b"MZ");
    file[60] = 0x80;
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    (file[0x86], file[0x94]) = (2, 96);
    file[0x98..0x9a].copy_from_slice(&[0x0b, 1]);
    let sections = 0x98 + 96;
    file[sections..sections + 4].copy_from_slice(b"UPX0");
    let second = sections + 40;
    file[second..second + 4].copy_from_slice(b"UPX1");
    file[second + 16..second + 20].copy_from_slice(&(data.len() as u32).to_le_bytes());
    file[second + 20..second + 24].copy_from_slice(&0x400u32.to_le_bytes());
    let mut header = b"UPX!\x0d\x09".to_vec();
    header.extend_from_slice(&[method, 9]);
    for number in [0, adler32(data), length as u32, data.len() as u32, length as u32, 0] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    file[0x3e0..0x400].copy_from_slice(&header);
    [file, data.to_vec()].concat()
}

/// A Linux program of one segment, then what UPX says, and blocks.
fn linux(blocks: &[(u8, Vec<u8>, usize)]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64 + 56, 0);
    file[32] = 64;
    (file[54], file[56]) = (56, 1);
    file.extend_from_slice(b"\0\0\0\0UPX!\0\0\x0d\x16");
    file.extend_from_slice(&[0; 12]);
    for (method, data, length) in blocks {
        file.extend_from_slice(&(*length as u32).to_le_bytes());
        file.extend_from_slice(&(data.len() as u32).to_le_bytes());
        file.extend_from_slice(&[*method, 0, 0, 0]);
        file.extend_from_slice(data);
    }
    file.extend_from_slice(&[0, 0, 0, 0, b'U', b'P', b'X', b'!', 0, 0, 0, 0]);
    let length = (file.len() as u64).to_le_bytes();
    // The segment is all of the file.
    file[96..104].copy_from_slice(&length);
    file
}

/// What has literals, copies from near and far, short and long, and the same offset again.
fn content() -> Vec<u8> {
    let mut random = Random(7);
    let noise: Vec<u8> = (0..6000).map(|_| random.next() as u8).collect();
    let words: Vec<&[u8]> = vec![b"quarantine", b"station", b"file", b"archive", b"\0\0\0\0"];
    let text: Vec<u8> = (0..3000).flat_map(|_| words[random.below(words.len())].to_vec()).collect();
    [&noise[..], &eicar(), &text, &noise[..5000], &[0; 70_000], &text[..900], &eicar()].concat()
}

fn unpacked(file: &[u8]) -> Vec<u8> {
    let taken = take_apart(file, &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
    taken.members.into_iter().find(|(name, _)| name == "unpacked").unwrap().1
}

#[test]
fn programs_come_out_of_every_method() {
    let content = content();
    for (method, data) in packed(&content) {
        assert!(data.len() < content.len(), "method {method} packs");
        assert!(unpacked(&windows(method, &data, content.len())) == content, "method {method} for Windows");
        let (half, rest) = content.split_at(content.len() / 2);
        let of = |part: &[u8]| packed(part).into_iter().find(|(number, _)| *number == method).unwrap().1;
        let blocks = [(method, of(half), half.len()), (0, b"stored".to_vec(), 6), (method, of(rest), rest.len())];
        assert!(unpacked(&linux(&blocks)) == [half, b"stored", rest].concat(), "method {method} for Linux");
    }
}

#[test]
fn packed_programs_survive() {
    let content = [eicar(), vec![7; 300], eicar(), b"quarantine quarantine".to_vec()].concat();
    let eicar = eicar();
    for (method, data) in packed(&content) {
        for file in [windows(method, &data, content.len()), linux(&[(method, data.clone(), content.len())])] {
            let case = Case::new("upx", &file, &eicar);
            conformance::comes_apart(&case);
            conformance::survives_cuts(&case);
            conformance::survives_mutations(&case, ROUNDS);
        }
    }
}

#[test]
fn what_was_changed_or_is_too_long_is_told() {
    let content = content();
    let (method, data) = packed(&content).remove(0);
    let mut file = windows(method, &data, content.len());
    file[0x500] ^= 1;
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.outcome.broken.is_some_and(|reason| reason.contains("changed")));
    let file = windows(method, &data, u32::MAX as usize);
    assert_eq!(take_apart(&file, &Passwords::NONE).outcome.limits, [Limit::Memory].into());
    let file = linux(&[(method, data, u32::MAX as usize)]);
    assert_eq!(take_apart(&file, &Passwords::NONE).outcome.limits, [Limit::Memory].into());
    // A text that mentions it, and a program that is not packed.
    for file in [&b"UPX! packs programs"[..], &[b"MZ".to_vec(), vec![0; 500], b"UPX!".to_vec(), vec![0; 500]].concat()]
    {
        assert!(take_apart(file, &Passwords::NONE).members.is_empty());
    }
}

/// A program that UPX itself packed, for looking at: `LAZARET_UPX=file`.
#[test]
fn a_program_at_hand_comes_apart() {
    let Ok(path) = std::env::var("LAZARET_UPX") else { return };
    let content = unpacked(&std::fs::read(path).unwrap());
    println!("{} bytes: {}", content.len(), String::from_utf8_lossy(&content).escape_debug());
}
