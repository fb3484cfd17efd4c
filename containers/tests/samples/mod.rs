//! Files that other programs made: each is one line of the table, kept as the hexadecimal digits of its gzipped bytes, so that no
//! scanner of somebody else's takes this tree for infected.
//!
//! They hold the EICAR test file, `readme.txt` and `folder/numbers.txt` (the squares up to 399^2, one a line), or the three one
//! after the other where a format has no members.

use std::io::Read;

/// A file of one format.
#[allow(dead_code, reason = "each test binary uses its own part")]
pub struct Sample {
    /// The name of its format in the table.
    pub format: &'static str,
    /// The file that holds it.
    #[allow(dead_code, reason = "not every test program shows it")]
    pub name: &'static str,
    /// The password that it needs.
    pub password: Option<&'static str>,
    /// How much its end is worth, see [`End`].
    pub end: End,
    digits: &'static str,
}

/// What is known when a file of the format is cut off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Always that it is.
    Marked,
    /// Cut between two members it is complete.
    Open,
    /// Somewhere it is complete with less in it: the format has neither length nor end mark, or one stream follows another.
    Unknown,
}

impl Sample {
    /// Its bytes.
    pub fn file(&self) -> Vec<u8> {
        unpack(self.digits)
    }
}

/// The bytes that digits of a sample stand for.
pub fn unpack(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let packed: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let mut file = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut file).unwrap();
    file
}

macro_rules! sample {
    ($format:literal, $name:literal) => {
        sample!($format, $name, None, End::Marked)
    };
    ($format:literal, $name:literal, $password:expr) => {
        sample!($format, $name, $password, End::Marked)
    };
    ($format:literal, $name:literal, $password:expr, $end:expr) => {
        Sample {
            format: $format,
            name: $name,
            password: $password,
            end: $end,
            digits: include_str!(concat!($name, ".hex")),
        }
    };
}

/// All of them.
pub static SAMPLES: &[Sample] = &[
    sample!("7z", "7z-lzma"),
    sample!("7z", "7z-lzma2"),
    sample!("7z", "7z-ppmd"),
    sample!("7z", "7z-bzip2"),
    sample!("7z", "7z-deflate"),
    sample!("7z", "7z-deflate64"),
    sample!("7z", "7z-copy"),
    sample!("7z", "7z-bcj2"),
    sample!("7z", "7z-bcj"),
    sample!("7z", "7z-delta"),
    sample!("7z", "7z-unsolid"),
    sample!("7z", "7z-empty"),
    sample!("7z", "7z-aes", Some("secret")),
    sample!("7z", "7z-aes-header", Some("secret")),
    sample!("7z", "7z-aes-copy", Some("secret")),
    sample!("arc", "arc-crunched"),
    sample!("arc", "arc-squashed"),
    sample!("arj", "arj"),
    sample!("arj", "arj-fastest"),
    sample!("arj", "arj-stored"),
    sample!("arj", "arj-garbled", Some("secret")),
    sample!("binhex", "binhex"),
    sample!("cab", "cab-mszip"),
    sample!("cab", "cab-stored"),
    sample!("chm", "chm"),
    sample!("compress", "compress", None, End::Unknown),
    sample!("compress", "compress-clears", None, End::Unknown),
    sample!("compress", "compress-twelve", None, End::Unknown),
    sample!("cpio", "cpio-bin"),
    sample!("cpio", "cpio-crc"),
    sample!("cpio", "cpio-newc"),
    sample!("cpio", "cpio-odc"),
    sample!("disk", "disk-apple"),
    sample!("disk", "disk-mbr"),
    sample!("exfat", "exfat"),
    sample!("ext", "ext2"),
    sample!("ext", "ext3"),
    sample!("ext", "ext4"),
    sample!("ext", "ext4-inline"),
    sample!("fat", "fat12"),
    sample!("fat", "fat16"),
    sample!("hfs", "hfs"),
    sample!("iso9660", "iso-joliet"),
    sample!("iso9660", "iso-joliet-rock"),
    sample!("iso9660", "iso-plain"),
    sample!("lz4", "lz4"),
    sample!("lz4", "lz4-legacy"),
    sample!("lz4", "lz4-linked"),
    sample!("lzip", "lzip"),
    sample!("lzip", "lzip-two", None, End::Unknown),
    sample!("lzma", "lzma"),
    sample!("lzop", "lzop"),
    sample!("lzop", "lzop-best"),
    sample!("lzh", "lzh", None, End::Open),
    sample!("nsis", "nsis-bzip2"),
    sample!("nsis", "nsis-bzip2-solid"),
    sample!("nsis", "nsis-lzma"),
    sample!("nsis", "nsis-lzma-solid"),
    sample!("nsis", "nsis-zlib"),
    sample!("nsis", "nsis-zlib-solid"),
    sample!("ntfs", "ntfs"),
    sample!("ntfs", "ntfs-index"),
    sample!("pe", "pe-resource"),
    sample!("pe", "pe-sfx", None, End::Unknown),
    sample!("rar", "rar-14", None, End::Open),
    sample!("rar", "rar-15", None, End::Open),
    sample!("rar", "rar-2", None, End::Open),
    sample!("rar", "rar-4", None, End::Open),
    sample!("rar", "rar-4-solid", None, End::Open),
    sample!("rar", "rar-5"),
    sample!("rar", "rar-5-solid"),
    sample!("rar", "rar-5-stored"),
    sample!("rar", "rar-7"),
    sample!("rar", "rar-4-aes", Some("secret")),
    sample!("rar", "rar-5-aes", Some("secret")),
    sample!("rar", "rar-5-aes-header", Some("secret")),
    sample!("rpm", "rpm"),
    sample!("squashfs", "squashfs-gzip"),
    sample!("squashfs", "squashfs-lz4"),
    sample!("squashfs", "squashfs-lzma"),
    sample!("squashfs", "squashfs-lzo"),
    sample!("squashfs", "squashfs-xz"),
    sample!("squashfs", "squashfs-zstd"),
    sample!("szdd", "szdd"),
    sample!("udf", "udf-bridge"),
    sample!("utf16", "utf16-big-html", None, End::Unknown),
    sample!("utf16", "utf16-html", None, End::Unknown),
    sample!("uuencode", "uuencode", None, End::Open),
    sample!("uuencode", "uuencode-base64", None, End::Open),
    sample!("vhd", "vhd"),
    sample!("vhdx", "vhdx"),
    sample!("vmdk", "vmdk"),
    sample!("vmdk", "vmdk-stream"),
    sample!("wim", "wim-lzx"),
    sample!("wim", "wim-lzx-program"),
    sample!("wim", "wim-none"),
    sample!("wim", "wim-xpress"),
    sample!("xar", "xar"),
    sample!("yenc", "yenc", None, End::Open),
    sample!("zip", "zip-traditional", Some("secret")),
    sample!("zip", "zip-aes128", Some("secret")),
    sample!("zip", "zip-aes192", Some("secret")),
    sample!("zip", "zip-aes256", Some("secret")),
    sample!("zip", "zip-deflate64"),
    sample!("zip", "zip-implode"),
    sample!("zip", "zip-implode-small"),
    sample!("zip", "zip-lzma"),
    sample!("zip", "zip-ppmd"),
    sample!("zip", "zip-reduce-1"),
    sample!("zip", "zip-reduce-4"),
    sample!("zip", "zip-shrink"),
    sample!("zip", "zip-shrink-clears"),
];
