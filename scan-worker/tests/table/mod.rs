//! README's table of formats, row by row, with files of each: what it promises is what is tested.
//!
//! A row is named by its first cell, word for word, and each file says which words of that cell it stands for. [`check`] fails if
//! a row, or a word of one, has no file. Files that other programs made come from the samples of `containers/`; the rest is made in
//! `make.rs`.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

#[path = "../../../containers/tests/cabinets/mod.rs"]
mod cabinets;
mod make;
#[allow(dead_code, reason = "some of what it tells is for other tests")]
#[path = "../../../containers/tests/samples/mod.rs"]
pub mod samples;

use std::collections::HashSet;

use lazaret_containers::ContainerFormat;
pub use make::{attached_message, eml, pdf};
use samples::{End, SAMPLES};

use crate::common::eicar;

/// A file of a format, with the EICAR test file in it unless the format is one that is not opened.
pub struct File {
    /// The words of the row's first cell that it stands for.
    pub of: &'static str,
    /// What it is called.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The password that it needs.
    pub password: Option<&'static str>,
    /// Cut off, it is never taken for whole.
    pub has_end: bool,
}

/// A row of README's table.
pub struct Row {
    /// Its first cell.
    pub formats: &'static str,
    /// Whether what is in these files is read at all, or told as not read.
    pub is_opened: bool,
    /// Files of it.
    pub files: Vec<File>,
}

/// Words of first cells that name no format.
const WORDS_BETWEEN: [&str; 11] =
    ["and", "for", "to", "also", "beside", "other", "s", "of", "partition", "map", "text"];
/// Words for which there is no file: no program at hand writes it, and what is tested is the structure that all versions share.
const WORDS_WITHOUT: [&str; 1] = ["2.60"];

/// The first cells of the table, as README has them.
fn cells() -> Vec<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let section = readme.split("\n## Formats\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap().trim().to_owned());
    // The heading.
    cells.skip(1).collect()
}

fn words(text: &str) -> HashSet<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '+' || c == '.';
    let words = text.split(|c: char| !is_part(c)).map(|word| word.trim_end_matches('.').to_lowercase());
    words.filter(|word| !word.is_empty()).collect()
}

/// Holds README to these rows, and these rows to the program's own table.
pub fn check(rows: &[Row]) {
    let listed: Vec<&str> = rows.iter().map(|row| row.formats).collect();
    assert_eq!(cells(), listed, "README's table of formats (left) is not what is tested (right)");
    for row in rows {
        let shown: HashSet<String> = row.files.iter().flat_map(|file| words(file.of)).collect();
        let missing: Vec<String> = words(row.formats)
            .into_iter()
            .filter(|word| !shown.contains(word))
            .filter(|word| ![&WORDS_BETWEEN[..], &WORDS_WITHOUT].concat().contains(&word.as_str()))
            .collect();
        assert!(missing.is_empty(), "{:?}: no file of {missing:?}", row.formats);
    }
    let sampled: HashSet<&str> = SAMPLES.iter().map(|sample| sample.format).collect();
    let made: HashSet<ContainerName> = rows.iter().flat_map(|row| &row.files).filter_map(detected).flatten().collect();
    for format in ContainerFormat::all().map(ContainerFormat::name) {
        assert!(
            sampled.contains(format) || made.contains(format),
            "the program opens {format:?}, of which there is no file"
        );
    }
}

type ContainerName = &'static str;

fn detected(file: &File) -> Option<Vec<ContainerName>> {
    let length = file.bytes.len() as u64;
    let found = lazaret_containers::detect(&mut std::io::Cursor::new(&file.bytes), length).ok()?;
    Some(found.containers.iter().map(|found| found.format.name()).collect())
}

/// The samples whose names begin so, which stand for some words.
fn of(words: &'static str, begins: &str) -> Vec<File> {
    let files: Vec<File> = SAMPLES
        .iter()
        .filter(|sample| sample.name == begins || sample.name.starts_with(&format!("{begins}-")))
        .map(|sample| File {
            of: words,
            name: sample.name.to_owned(),
            bytes: sample.file(),
            password: sample.password,
            has_end: sample.end == End::Marked,
        })
        .collect();
    assert!(!files.is_empty(), "no sample begins with {begins:?}");
    files
}

/// A file that is made here.
fn made(of: &'static str, bytes: Vec<u8>) -> Vec<File> {
    vec![File { of, name: of.to_lowercase().replace(' ', "-"), bytes, password: None, has_end: false }]
}

fn row(formats: &'static str, files: impl IntoIterator<Item = Vec<File>>) -> Row {
    let mut names = HashSet::new();
    let files = files.into_iter().flatten().filter(|file| names.insert(file.name.clone())).collect();
    Row { formats, is_opened: true, files }
}

/// Every row of README's table.
pub fn rows() -> Vec<Row> {
    let eicar = eicar();
    let content = eicar.as_slice();
    let mut rows = archives(content);
    rows.extend(disks(content));
    rows.extend(documents(content));
    rows.push(Row {
        is_opened: false,
        ..row("QCOW2, VDI, QED, COWD, Parallels' and Bochs' disks, sparse images of Macs and Android, raw CD images, LUKS, BitLocker, APFS, ReFS, Btrfs, cramfs, romfs, zisofs, WARC, ZPAQ, FreeArc, ACE, ALZ, EGG, KGB, MLA, SQX, ZOO, ARJ's JAR, UHARC, Mozilla's MAR, StuffIt, Apple Archive, pbzx, Flatpak, Pack200, InstallShield, Inno Setup, AutoIt, Access, PST, Microsoft Help 2, lrzip, rzip, grzip, bzip3, PPMd, LZFSE, Snappy, Zstandard before 0.8", make::unopened())
    });
    rows
}

fn archives(content: &[u8]) -> Vec<Row> {
    vec![
        row(
            "zip, and jar, apk, whl, crx, OOXML, ODF, epub",
            std::iter::once(of("zip", "zip")).chain(make::zips(content).into_iter().map(|(of, bytes)| made(of, bytes))),
        ),
        row("tar", make::tars(content).into_iter().map(|(of, bytes)| made(of, bytes))),
        row(
            "gzip, bzip2, xz, lzma, zstd, lz4, lzip, lzop, zlib, Z, SZDD",
            [
                made("gzip", crate::common::gz(content)),
                made("bzip2", crate::common::bz2(content)),
                made("xz", crate::common::xz(content)),
                made("zstd", crate::common::zst(content)),
                of("lzma", "lzma"),
                of("lz4", "lz4"),
                of("lzip", "lzip"),
                of("lzop", "lzop"),
                made("zlib", make::zlib(b"", content)),
                of("Z", "compress"),
                of("SZDD", "szdd"),
            ],
        ),
        row("7z", [of("7z", "7z")]),
        row("rar 1.3 to 7", [of("rar 1.3", "rar-14"), of("rar 7", "rar-7"), of("rar", "rar")]),
        row("cab", [of("cab", "cab"), made("cab Quantum", make::quantum(content))]),
        row(
            "rpm, cpio (bin, odc, newc), ar, deb, xar, gem",
            [
                of("rpm", "rpm"),
                of("cpio", "cpio-crc"),
                of("cpio bin", "cpio-bin"),
                of("cpio odc", "cpio-odc"),
                of("cpio newc", "cpio-newc"),
                of("xar", "xar"),
                made("ar", crate::common::ar(&[("e.com/", content)])),
                made("deb", make::deb(content)),
                made("gem", make::gem(content)),
            ],
        ),
        row("lzh, arj, arc", [of("lzh", "lzh"), of("arj", "arj"), of("arc", "arc")]),
        row(
            "Electron's asar; AppleSingle, AppleDouble",
            [
                made("Electron's asar", make::asar(content)),
                made("AppleSingle", make::appledouble(false, content)),
                made("AppleDouble", make::appledouble(true, content)),
            ],
        ),
    ]
}

fn disks(content: &[u8]) -> Vec<Row> {
    vec![
        row("iso9660", [of("iso9660", "iso")]),
        row("UDF 1.02 to 2.60, also beside iso9660", [of("UDF 1.02 iso9660", "udf")]),
        row("squashfs, AppImage", [of("squashfs", "squashfs"), made("AppImage", make::app_image())]),
        row(
            "FAT12, 16, 32; exFAT",
            [of("FAT12", "fat12"), of("FAT 16", "fat16"), made("FAT 32", make::fat32(content)), of("exFAT", "exfat")],
        ),
        row("ext2, ext3, ext4", [of("ext2", "ext2"), of("ext3", "ext3"), of("ext4", "ext4")]),
        row("NTFS", [of("NTFS", "ntfs")]),
        row("HFS+, HFSX", [of("HFS+", "hfs"), made("HFSX", make::hfsx())]),
        row(
            "MBR, GPT, Apple's partition map",
            [of("MBR", "disk-mbr"), made("GPT", make::gpt()), of("Apple", "disk-apple")],
        ),
        row(
            "VHD, VHDX, VMDK (sparse, streamOptimized)",
            [
                of("VHD", "vhd"),
                of("VHDX", "vhdx"),
                of("VMDK streamOptimized", "vmdk-stream"),
                of("VMDK sparse", "vmdk"),
            ],
        ),
        row("DMG", [made("DMG", make::dmg())]),
        row("WIM", [of("WIM", "wim")]),
    ]
}

fn documents(content: &[u8]) -> Vec<Row> {
    vec![
        row(
            "programs for Windows and Linux, UPX, PyInstaller, Nuitka, .NET",
            [
                of("programs Windows", "pe"),
                made("programs Linux", make::linux_program(content)),
                made("UPX", make::packed_program(content)),
                made("PyInstaller", make::pyinstaller(content)),
                made(".NET", make::dotnet(content)),
                made("PyInstaller PYZ", make::pyz(content)),
                made("Nuitka", [b"KAY", &crate::common::zst(content)[..]].concat()),
            ],
        ),
        row("lnk, vbe, jse", [made("lnk", make::shortcut(content)), made("vbe jse", make::encoded_script())]),
        row("NSIS, CHM", [of("NSIS", "nsis"), of("CHM", "chm")]),
        row("doc, xls, ppt, msi, msg (OLE)", make::compounds(content).into_iter().map(|(of, bytes)| made(of, bytes))),
        row("pdf", [made("pdf", make::pdf(content))]),
        row(
            "rtf, OneNote, ActiveMime",
            [
                made("rtf", make::rtf(content)),
                made("OneNote", make::onenote(content)),
                made("ActiveMime", make::activemime(content)),
            ],
        ),
        row(
            "eml, mbox, MHTML, TNEF, uuencode, yEnc, BinHex 4",
            [
                made("eml", make::eml(content)),
                made("mbox", make::mbox(content)),
                made("MHTML", make::mhtml(content)),
                made("TNEF", make::tnef(content)),
                of("uuencode", "uuencode"),
                of("yEnc", "yenc"),
                of("BinHex 4", "binhex"),
            ],
        ),
        row("S/MIME, p7m, OpenPGP", [made("S MIME p7m", make::cms(content)), made("OpenPGP", make::pgp(content))]),
        row(
            "html, css, scripts, XML, JSON, ics, vcf, PEM, LDIF and other text",
            [make::texts(content).into_iter().flat_map(|(of, bytes)| made(of, bytes)).collect(), of("html", "utf16")],
        ),
        row("swf", [made("swf", make::swf(content))]),
    ]
}
