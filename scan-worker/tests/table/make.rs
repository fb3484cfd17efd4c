//! Files of formats that are made here, around the EICAR test file.

use std::io::{Cursor, Write};

use super::samples::SAMPLES;
use super::{File, cabinets, made};
use crate::common::{ar, gz, tar, xz, zip};

#[path = "../../../containers/tests/base64/mod.rs"]
mod base64;
#[path = "../../../containers/tests/built/mod.rs"]
mod built;

pub use built::{activemime, appledouble, asar, cms, dotnet, onenote, pgp, pyinstaller, pyz, zlib};

fn sample(name: &str) -> Vec<u8> {
    SAMPLES.iter().find(|sample| sample.name == name).unwrap().file()
}

/// ZIP, and what is built on it.
pub fn zips(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let word =
        [("[Content_Types].xml", &b"<Types/>"[..]), ("word/document.xml", b"<w/>"), ("word/embeddings/e.bin", content)];
    let writer = [("mimetype", &b"application/vnd.oasis.opendocument.text"[..]), ("Pictures/e.com", content)];
    let book =
        [("mimetype", &b"application/epub+zip"[..]), ("META-INF/container.xml", b"<c/>"), ("OEBPS/e.js", content)];
    let extension = zip(&[("manifest.json", b"{}"), ("e.com", content)]);
    vec![
        ("zip", zip(&[("readme.txt", b"read me"), ("e.com", content)])),
        ("jar", zip(&[("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\r\n"), ("E.class", content)])),
        ("apk", zip(&[("AndroidManifest.xml", b"\x03\0\x08\0"), ("classes.dex", content)])),
        ("whl", zip(&[("e/__init__.py", content), ("e-1.dist-info/METADATA", b"Name: e\n")])),
        ("crx", [b"Cr24\x03\0\0\0\x10\0\0\0", &[7; 16][..], &extension].concat()),
        ("OOXML", zip(&word)),
        ("ODF", zip(&writer)),
        ("epub", zip(&book)),
    ]
}

/// A cabinet in the one method that no program at hand writes.
pub fn quantum(content: &[u8]) -> Vec<u8> {
    let folder = cabinets::Folder { method: cabinets::QUANTUM, blocks: cabinets::quantum(content), name: "e.com" };
    cabinets::cabinet(&[folder])
}

/// Tape archives of each kind.
pub fn tars(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let one = |mut header: tar::Header, name: &str| {
        header.set_size(content.len() as u64);
        header.set_path(name).unwrap();
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, content).unwrap();
        archive.into_inner().unwrap()
    };
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("path", "named by pax.com".as_bytes())]).unwrap();
    let mut archive = pax.into_inner().unwrap();
    // Without the end of the first.
    archive.truncate(1024);
    archive.extend(one(tar::Header::new_ustar(), "e.com"));
    vec![
        ("tar V7", one(tar::Header::new_old(), "e.com")),
        ("tar ustar", one(tar::Header::new_ustar(), "e.com")),
        ("tar GNU", one(tar::Header::new_gnu(), "e.com")),
        ("tar PAX", archive),
    ]
}

pub fn deb(content: &[u8]) -> Vec<u8> {
    let control = gz(&tar(&[("./control", b"Package: test\n")]));
    let data = xz(&tar(&[("./usr/bin/test", content)]));
    ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.xz", &data)])
}

pub fn gem(content: &[u8]) -> Vec<u8> {
    let data = gz(&tar(&[("lib/e.rb", content)]));
    tar(&[("metadata.gz", &gz(b"--- !ruby/object\n")), ("data.tar.gz", &data)])
}

/// A program for Linux with a file system behind it.
pub fn app_image() -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01\0AI\x02".to_vec();
    program.resize(16, 0);
    program.extend_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
    // One section, which is none, and whose header is at the program's end.
    program.resize(4096, 0);
    program[40..48].copy_from_slice(&(4096u64 - 64).to_le_bytes());
    (program[58], program[60]) = (64, 1);
    [program, sample("squashfs-gzip")].concat()
}

/// A program with an archive behind it, as installers have.
pub fn linux_program(content: &[u8]) -> Vec<u8> {
    let mut program = app_image();
    program.truncate(4096);
    [program, gz(&tar(&[("e.com", content)]))].concat()
}

/// The same program, which UPX packed in one block of Deflate.
pub fn packed_program(content: &[u8]) -> Vec<u8> {
    let program = [&app_image()[..4096], content].concat();
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    deflated.write_all(&program).unwrap();
    let data = deflated.finish().unwrap();
    let mut file = program[..64].to_vec();
    file[32] = 64;
    file[40..48].fill(0);
    file[60] = 0;
    file.extend_from_slice(b"\0\0\0\0UPX!\0\0\x0d\x16");
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(&(program.len() as u32).to_le_bytes());
    file.extend_from_slice(&(data.len() as u32).to_le_bytes());
    file.extend_from_slice(&[15, 0, 0, 0]);
    [file, data, vec![0; 12]].concat()
}

/// A file system of 65,600 clusters of a sector, with a file in the third.
pub fn fat32(content: &[u8]) -> Vec<u8> {
    const TABLE_SECTORS: usize = 513;
    const SECTORS: usize = 32 + TABLE_SECTORS + 65_600;
    let mut image = vec![0; SECTORS * 512];
    image[..11].copy_from_slice(b"\xeb\x58\x90mkfs.fat");
    (image[12], image[13], image[14], image[16], image[21]) = (2, 1, 32, 1, 0xf8);
    image[32..36].copy_from_slice(&(SECTORS as u32).to_le_bytes());
    image[36..40].copy_from_slice(&(TABLE_SECTORS as u32).to_le_bytes());
    (image[44], image[48], image[50]) = (2, 1, 6);
    image[82..90].copy_from_slice(b"FAT32   ");
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    let table = 32 * 512;
    for (cluster, next) in [0x0fff_fff8u32, 0x0fff_ffff, 0x0fff_ffff, 0x0fff_ffff].into_iter().enumerate() {
        image[table + cluster * 4..][..4].copy_from_slice(&next.to_le_bytes());
    }
    let root = (32 + TABLE_SECTORS) * 512;
    image[root..root + 11].copy_from_slice(b"E       COM");
    (image[root + 11], image[root + 26]) = (0x20, 3);
    image[root + 28..root + 32].copy_from_slice(&(content.len() as u32).to_le_bytes());
    image[root + 512..][..content.len()].copy_from_slice(content);
    image
}

/// HFS+ whose names differ by their case.
pub fn hfsx() -> Vec<u8> {
    let mut image = sample("hfs");
    assert_eq!(&image[1024..1026], b"H+");
    image[1024..1028].copy_from_slice(&[b'H', b'X', 0, 5]);
    image
}

/// A disk with one partition, described by a GPT and what goes before one.
pub fn gpt() -> Vec<u8> {
    let partition = sample("ext2");
    let (first, sectors) = (64u64, partition.len().div_ceil(512) as u64);
    let mut disk = vec![0; 64 * 512];
    (disk[450], disk[454]) = (0xee, 1);
    disk[458..462].copy_from_slice(&u32::MAX.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4");
    entries[16..32].copy_from_slice(&[7; 16]);
    entries[32..40].copy_from_slice(&first.to_le_bytes());
    entries[40..48].copy_from_slice(&(first + sectors - 1).to_le_bytes());
    let sum = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(92, 0);
    for (at, number) in [(24, 1), (32, 64 + sectors + 33), (40, 34), (48, 64 + sectors), (72, 2)] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..92].copy_from_slice(&sum(&entries));
    let own = sum(&header);
    header[16..20].copy_from_slice(&own);
    disk[512..604].copy_from_slice(&header);
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
    disk.extend(partition);
    disk.resize((64 + sectors as usize + 34) * 512, 0);
    disk
}

/// A disk image of a Mac: chunks of 32 KiB that zlib compressed.
pub fn dmg() -> Vec<u8> {
    let disk = sample("hfs");
    let (mut file, mut table, mut count) = (Vec::new(), Vec::new(), 0u32);
    for (number, chunk) in disk.chunks(32 * 1024).enumerate() {
        let packed = zlib(&[], chunk);
        table.extend_from_slice(&0x8000_0005u32.to_be_bytes());
        table.extend_from_slice(&[0; 4]);
        let numbers = [number * 64, chunk.len() / 512, file.len(), packed.len()];
        table.extend(numbers.into_iter().flat_map(|number| (number as u64).to_be_bytes()));
        file.extend_from_slice(&packed);
        count += 1;
    }
    table.extend_from_slice(&u32::MAX.to_be_bytes());
    table.extend_from_slice(&[0; 36]);
    let mut header = b"mish\0\0\0\x01".to_vec();
    header.extend_from_slice(&0u64.to_be_bytes());
    header.extend_from_slice(&((disk.len() / 512) as u64).to_be_bytes());
    header.resize(200, 0);
    header.extend_from_slice(&(count + 1).to_be_bytes());
    let table = base64::encode(&[header, table].concat());
    let list = format!(
        "<?xml version=\"1.0\"?>\n<plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key>\n<array><dict>\
         <key>Data</key><data>\n{table}\n</data></dict></array></dict></dict></plist>\n"
    );
    let (list_at, list_bytes) = (file.len() as u64, list.len() as u64);
    file.extend_from_slice(list.as_bytes());
    let mut trailer = b"koly\0\0\0\x04\0\0\x02\0".to_vec();
    trailer.resize(512, 0);
    trailer[32..40].copy_from_slice(&list_at.to_be_bytes());
    trailer[60..64].copy_from_slice(&1u32.to_be_bytes());
    trailer[216..224].copy_from_slice(&list_at.to_be_bytes());
    trailer[224..232].copy_from_slice(&list_bytes.to_be_bytes());
    file.extend_from_slice(&trailer);
    file
}

fn compound(streams: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    for (path, content) in streams {
        if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            file.create_storage_all(folder).unwrap();
        }
        file.create_stream(path).unwrap().write_all(content).unwrap();
    }
    file.flush().unwrap();
    file.into_inner().into_inner()
}

/// A file as it lies in `Ole10Native`.
fn package(content: &[u8]) -> Vec<u8> {
    let data = [b"\x02\0e.com\0C:\\e.com\0\0\0\x03\0\x02\0\0\0a\0", &(content.len() as u32).to_le_bytes()[..], content];
    data.concat()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

/// A stream of slides with an object in it, deflated.
fn slides(object: &[u8]) -> Vec<u8> {
    let object = zlib(&with_length(object)[..4], object);
    [b"\x0f\0\xe8\x03\x08\0\0\0\0\0\0\0\0\0\0\0\x10\0\x11\x10", &with_length(&object)[..]].concat()
}

/// Compound files as Office, Windows Installer and Outlook write them.
pub fn compounds(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let native = with_length(&package(content));
    let name: Vec<u8> = "e.com".encode_utf16().flat_map(u16::to_le_bytes).collect();
    // The names of MSI's tables are two characters in one of a private range.
    let binary = "/\u{4840}\u{3f0a}\u{45b2}";
    vec![
        ("doc", compound(&[("/WordDocument", &[0; 64]), ("/ObjectPool/_1/\u{1}Ole10Native", &native)])),
        ("xls", compound(&[("/Workbook", &[0; 64]), ("/MBD0001/\u{1}Ole10Native", &native)])),
        ("ppt", compound(&[("/PowerPoint Document", &slides(&compound(&[("/\u{1}Ole10Native", &native)])))])),
        ("msi", compound(&[("/\u{5}SummaryInformation", &[0; 64]), (binary, content)])),
        (
            "msg OLE",
            compound(&[
                ("/__properties_version1.0", &[0; 32]),
                ("/__attach_version1.0_#00000000/__substg1.0_37010102", content),
                ("/__attach_version1.0_#00000000/__substg1.0_3707001F", &name),
            ]),
        ),
    ]
}

/// A document with an attachment.
pub fn pdf(content: &[u8]) -> Vec<u8> {
    let before = format!(
        "%PDF-1.4\n1 0 obj\n<< /Type /Filespec /F (e.com) /EF << /F 2 0 R >> >>\nendobj\n\
         2 0 obj\n<< /Type /EmbeddedFile /Filter /FlateDecode /Length {} >>\nstream\n",
        zlib(&[], content).len()
    );
    [before.as_bytes(), &zlib(&[], content), b"\nendstream\nendobj\nstartxref\n0\n%%EOF\n"].concat()
}

pub fn rtf(content: &[u8]) -> Vec<u8> {
    let mut object = b"\x01\x05\0\0\x02\0\0\0\x08\0\0\0Package\0\0\0\0\0\0\0\0\0".to_vec();
    object.extend_from_slice(&with_length(&package(content)));
    let digits: String = object.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{{\\rtf1 text{{\\object\\objemb{{\\*\\objclass Package}}{{\\*\\objdata\n{digits}}}}}}}").into_bytes()
}

/// The EICAR test file as Windows' script encoder writes a script.
pub fn encoded_script() -> Vec<u8> {
    b"#@~^AAAAAA==plrZh]@$bn]c'K}o**`h7b{;Z#FN^AqZz]R?:bgf)I9Rz1Pqj(I`?RPA?KRo&S3\"fu3CMAAAAAA==^#~@".to_vec()
}

/// A shortcut whose arguments are the content, in UTF-16.
pub fn shortcut(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x4c\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46\xa0\0\0\0".to_vec();
    file.resize(76, 0);
    file.extend_from_slice(&(content.len() as u16).to_le_bytes());
    file.extend(content.iter().flat_map(|byte| [*byte, 0]));
    [&file[..], &[0; 4]].concat()
}

/// A message with one attachment.
pub fn eml(content: &[u8]) -> Vec<u8> {
    format!(
        "From: a@b\r\nSubject: c\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\
         Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=e.com\r\n\r\n{}\r\n--x--\r\n",
        base64::encode(content)
    )
    .into_bytes()
}

/// A message with another one attached, which has the attachment.
pub fn attached_message(content: &[u8]) -> Vec<u8> {
    let inner = String::from_utf8(eml(content)).unwrap().replace("--x", "--y").replace("=x", "=y");
    format!(
        "From: a@b\r\nSubject: Fwd: c\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nsee\r\n\
         --x\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n{inner}\r\n--x--\r\n"
    )
    .into_bytes()
}

pub fn mbox(content: &[u8]) -> Vec<u8> {
    [b"From a Thu Jan  1 00:00:00 1970\n".to_vec(), eml(content), b"\nFrom b\n".to_vec(), eml(b"other")].concat()
}

pub fn mhtml(content: &[u8]) -> Vec<u8> {
    format!(
        "From: <Saved by a browser>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=x\r\n\r\n--x\r\n\
         Content-Type: text/html\r\n\r\n<html>\r\n--x\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\
         Content-Location: file:///C:/e.png\r\n\r\n{}\r\n--x--\r\n",
        base64::encode(content)
    )
    .into_bytes()
}

pub fn tnef(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x78\x9f\x3e\x22\x01\0".to_vec();
    for (number, data) in [(0x0006_9002_u32, &[0; 14][..]), (0x0001_8010, b"a\0"), (0x0006_800f, content)] {
        file.push(2);
        file.extend_from_slice(&number.to_le_bytes());
        file.extend_from_slice(&with_length(data));
        file.extend_from_slice(&data.iter().fold(0u16, |sum, byte| sum.wrapping_add(u16::from(*byte))).to_le_bytes());
    }
    file
}

/// Text with data in it.
pub fn texts(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let data = base64::encode(content);
    let long = base64::encode(&[&[b' '; 100], content].concat());
    let lines = |between: &str| {
        let lines: Vec<&str> = data.as_bytes().chunks(48).map(|line| std::str::from_utf8(line).unwrap()).collect();
        lines.join(between)
    };
    let texts = [
        ("html", format!("<!DOCTYPE html>\n<a href=\"data:application/zip;base64,{data}\">a</a>\n")),
        ("css", format!("a {{ background: url(data:image/png;base64,{data}) }}\n")),
        ("scripts", format!("var a = atob(\"{long}\");\n")),
        ("XML", format!("<?xml version=\"1.0\"?>\n<w:binData w:name=\"a\">{}</w:binData>\n", lines("\r\n"))),
        ("JSON", format!("{{\"a\": \"{long}\"}}\n")),
        (
            "ics",
            format!("BEGIN:VCALENDAR\r\nATTACH;ENCODING=BASE64;VALUE=BINARY:{}\r\nEND:VCALENDAR\r\n", lines("\r\n ")),
        ),
        ("vcf", format!("BEGIN:VCARD\r\nPHOTO;ENCODING=b:{}\r\n\r\nEND:VCARD\r\n", lines("\r\n "))),
        ("PEM", format!("-----BEGIN X-----\n{}\n-----END X-----\n", lines("\n"))),
        ("LDIF", format!("dn: x\nattr:: {data}\n")),
    ];
    texts.into_iter().map(|(of, text)| (of, text.into_bytes())).collect()
}

pub fn swf(content: &[u8]) -> Vec<u8> {
    zlib(b"CWS\x0a\x4c\0\0\0", content)
}

/// What is known and not opened.
pub fn unopened() -> Vec<Vec<File>> {
    let apfs = [&[0; 32][..], b"NXSB"].concat();
    let btrfs = [vec![0; 0x1_0040], b"_BHRfS_M".to_vec()].concat();
    let stuff_it = b"SIT!\0\x01\0\0\0\0rLau";
    let heads: [(&'static str, &[u8]); 49] = [
        ("QCOW2", b"QFI\xfb\0\0\0\x03"),
        ("raw CD images", b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\x02\0\x01"),
        ("APFS", &apfs),
        ("ReFS", b"\0\0\0ReFS\0\0\0\0"),
        ("Btrfs", &btrfs),
        ("cramfs", b"\x45\x3d\xcd\x28"),
        ("romfs", b"-rom1fs-"),
        ("ALZ", b"ALZ\x01"),
        ("EGG", b"EGGA\0\x01"),
        ("KGB", b"KGB_arch -7\n"),
        ("MLA", b"MLA\x01\0\0\0"),
        ("Mozilla's MAR", b"MAR1"),
        ("StuffIt", stuff_it),
        ("InstallShield", b"ISc(\x6c\x50\0\x01"),
        ("Inno Setup", b"zlb\x1a"),
        ("PST", b"!BDN"),
        ("rzip", b"RZIP\x02\x01"),
        ("bzip3", b"BZ3v1"),
        ("LZFSE", b"bvx2"),
        ("Snappy", b"\xff\x06\0\0sNaPpY"),
        ("Zstandard before 0.8", b"\x27\xb5\x2f\xfd"),
        ("VDI", b"<<< QEMU VM Virtual Disk Image >>>\n"),
        ("zisofs", b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07"),
        ("WARC", b"WARC/1.0\r\n"),
        ("ZPAQ", b"7kSt\xa0\x31\x83\xd3\x8c\xb2\x28\xb0\xd3zPQ\x02\x01"),
        ("FreeArc", b"ArC\x01"),
        ("ACE", b"\x12\x34\x31\0\0\0\x90**ACE**"),
        ("lrzip", b"LRZI\0\x06"),
        ("grzip", b"GRZipII\0"),
        ("QED", b"QED\0\0\0\x01\0"),
        ("Parallels' disks", b"WithoutFreeSpace\x02\0\0\0"),
        ("Bochs' disks", b"Bochs Virtual HD Image\0"),
        ("COWD", b"COWD\x01\0\0\0"),
        ("sparse images of Macs", b"sprs\0\0\0\x03"),
        ("sparse images of Android", b"\x3a\xff\x26\xed\x01\0"),
        ("LUKS", b"LUKS\xba\xbe\0\x01"),
        ("BitLocker", b"\xeb\x58\x90-FVE-FS-"),
        ("AutoIt", b"\xa3\x48\x4b\xbe\x98\x6c\x4a\xa9\x99\x4c\x53\x0a\x86\xd6\x48\x7d"),
        ("Access", b"\0\x01\0\0Standard ACE DB\0"),
        ("Flatpak", b"flatpak\0\x01\0\x89\xe5"),
        ("Apple Archive", b"AA01\x20\0TYP1F"),
        ("pbzx", b"pbzx\0\0\0\0"),
        ("Microsoft Help 2", b"ITOLITLS\x01\0\0\0"),
        ("Pack200", b"\xca\xfe\xd0\x0d"),
        ("PPMd", b"\x8f\xaf\xac\x84"),
        ("UHARC", b"UHA\x06"),
        ("SQX", b"\0\0\0\0\0\0\0-sqx-"),
        ("ARJ's JAR", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x1aJar\x1b"),
        ("ZOO", b"ZOO 2.10 Archive.\x1a\0\0\xdc\xa7\xc4\xfd"),
    ];
    heads.into_iter().map(|(of, head)| made(of, [head, &[0; 512]].concat())).collect()
}
