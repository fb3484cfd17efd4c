//! Disk images and file systems: those that no program at hand writes, and those that lead in circles or lie.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base64;
#[allow(dead_code, reason = "some of what it tells is for other tests")]
mod samples;

use std::io::Write;

use lazaret_containers::conformance::{self, Case, eicar, take_apart, take_apart_as};
use lazaret_containers::{ContainerFormat, Passwords};
use samples::SAMPLES;

const SECTOR_BYTES: usize = 512;
/// Random changes of each file.
const ROUNDS: u32 = 200;

fn sample(name: &str) -> Vec<u8> {
    SAMPLES.iter().find(|sample| sample.name == name).unwrap().file()
}

/// How a chunk of a DMG is compressed: the number that says so.
const STORED: u32 = 1;
const ADC: u32 = 0x8000_0004;
const ZLIB: u32 = 0x8000_0005;
const BZIP2: u32 = 0x8000_0006;
const LZFSE: u32 = 0x8000_0007;
const LZMA: u32 = 0x8000_0008;

fn compress(method: u32, content: &[u8]) -> Vec<u8> {
    match method {
        ADC => content.chunks(128).flat_map(|part| [&[0x7f + part.len() as u8], part].concat()).collect(),
        ZLIB => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        BZIP2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        LZFSE => {
            let mut packed = Vec::new();
            lzfse_rust::encode_bytes(content, &mut packed).unwrap();
            packed
        }
        LZMA => {
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
            writer.write_all(content).unwrap();
            writer.finish().unwrap()
        }
        _ => content.to_vec(),
    }
}

/// A table of chunks, of a disk of so many sectors.
fn chunk_table(chunks: &[u8], sectors: usize) -> String {
    let mut header = b"mish\0\0\0\x01".to_vec();
    header.extend_from_slice(&0u64.to_be_bytes());
    header.extend_from_slice(&(sectors as u64).to_be_bytes());
    header.resize(200, 0);
    header.extend_from_slice(&(chunks.len() as u32 / 40).to_be_bytes());
    base64::encode(&[&header, chunks].concat())
}

/// An array of one table, as it is in a property list.
fn table_array(table: &str) -> String {
    format!(
        "<key>blkx</key>\n<array><dict><key>Attributes</key><string>0x0050</string><key>Data</key><data>\n{table}\n</data></dict></array>"
    )
}

/// A DMG of a disk: chunks of 32 KiB, those of zeros left out, and the others compressed by one method after the other.
fn dmg(disk: &[u8], methods: &[u32]) -> Vec<u8> {
    dmg_with(disk, methods, table_array)
}

/// The same with what the property list is to have for its table.
fn dmg_with(disk: &[u8], methods: &[u32], fork: impl Fn(&str) -> String) -> Vec<u8> {
    let (mut file, mut table) = (Vec::new(), Vec::new());
    for (number, chunk) in disk.chunks(32 * 1024).enumerate() {
        let is_zeros = chunk.iter().all(|byte| *byte == 0);
        let method = if is_zeros { 0 } else { methods[number % methods.len()] };
        let packed = if is_zeros { Vec::new() } else { compress(method, chunk) };
        table.extend_from_slice(&method.to_be_bytes());
        table.extend_from_slice(&[0; 4]);
        let numbers = [number * 64, chunk.len() / SECTOR_BYTES, file.len(), packed.len()];
        table.extend(numbers.into_iter().flat_map(|number| (number as u64).to_be_bytes()));
        file.extend_from_slice(&packed);
    }
    table.extend_from_slice(&u32::MAX.to_be_bytes());
    table.extend_from_slice(&[0; 36]);
    let fork = fork(&chunk_table(&table, disk.len() / SECTOR_BYTES));
    let list = format!(
        "<?xml version=\"1.0\"?>\n<plist version=\"1.0\"><dict><key>resource-fork</key><dict>{fork}</dict></dict></plist>\n"
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

#[test]
fn disk_images_of_macs_come_apart_whatever_compresses_them() {
    for disk in ["hfs", "disk-mbr", "ext2"] {
        for methods in [&[STORED][..], &[ADC], &[ZLIB], &[BZIP2], &[LZFSE], &[LZMA], &[ADC, ZLIB, LZFSE, STORED]] {
            let file = dmg(&sample(disk), methods);
            conformance::comes_apart(&Case::new("dmg", &file, &eicar()));
        }
    }
    let mixed = dmg(&sample("hfs"), &[ZLIB, ADC, BZIP2, LZFSE, LZMA]);
    conformance::check(&Case::new("dmg", &mixed, &eicar()), ROUNDS);
}

#[test]
fn each_list_of_chunks_of_a_disk_image_of_macs_is_read() {
    let disk = sample("hfs");
    // A disk of zeros.
    let mut chunks = [0; 40];
    chunks[16..24].copy_from_slice(&64u64.to_be_bytes());
    let decoy = table_array(&chunk_table(&chunks, 64));
    for around in
        [("<key>y</key><dict>", "</dict>"), ("<!-- ", " -->"), ("<key>x</key><string><![CDATA[", "]]></string>")]
    {
        let decoy = [around.0, &decoy, around.1].concat();
        let before = dmg_with(&disk, &[ZLIB], |table| format!("{decoy}{}", table_array(table)));
        let behind = dmg_with(&disk, &[ZLIB], |table| format!("{}{decoy}", table_array(table)));
        for file in [before, behind] {
            assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE), "{around:?}");
            assert!(take_apart(&file, &Passwords::NONE).outcome.suspicious.is_some(), "{around:?}");
        }
    }
    for odd in ["<key>Data</key><data><!-- -->AAAA</data>", "<data>AAA&#65;</data>", "<data>A=AA</data>"] {
        let file = dmg_with(&disk, &[ZLIB], |table| format!("{odd}{}", table_array(table)));
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some(), "{odd:?}");
    }
    // Real images have other data too, and none.
    let others =
        "<key>plst</key><array><dict><key>Data</key><data>\nAAAA\nAAA=\n</data></dict><data></data><data/></array>";
    let file = dmg_with(&disk, &[ZLIB], |table| format!("{}{others}", table_array(table)));
    conformance::comes_apart(&Case::new("dmg", &file, &eicar()));
}

/// Writes an entry into a disk's partition table.
fn set_partition(disk: &mut [u8], number: usize, status: u8, kind: u8, first: u32, count: u32) {
    let mut entry = [status, 1, 1, 0, kind, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..].copy_from_slice(&count.to_le_bytes());
    disk[446 + number * 16..][..16].copy_from_slice(&entry);
}

fn is_disk(file: &[u8]) -> bool {
    let detected = lazaret_containers::detect(&mut std::io::Cursor::new(file), file.len() as u64).unwrap();
    detected.containers.iter().any(|found| found.format.name() == "disk")
}

#[test]
fn senseless_entries_of_a_partition_table_hide_no_partition() {
    for (status, kind, first) in [(0, 0x83, 100_000), (1, 0, 0), (0x7f, 0x83, 100_000), (0, 5, 100_000)] {
        for number in [2, 3] {
            let mut disk = sample("disk-mbr");
            set_partition(&mut disk, number, status, kind, first, 5000);
            for file in [dmg(&disk, &[ZLIB]), disk] {
                assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE), "{status} {kind} {first}");
                let taken = take_apart(&file, &Passwords::NONE);
                assert!(taken.outcome.broken.is_some(), "{status} {kind} {first}: {taken:?}");
                assert!(taken.members.iter().all(|(name, _)| name != "disk"), "{taken:?}");
            }
        }
    }
    // An extended partition that is none hides nothing that comes behind it.
    let mut disk = sample("disk-mbr");
    let entry: [u8; 16] = disk[446..462].try_into().unwrap();
    disk[494..510].copy_from_slice(&entry);
    set_partition(&mut disk, 0, 0, 5, 1, 1);
    assert!(conformance::is_found(&disk, &eicar(), &Passwords::NONE));
    // Images of discs that boot from sticks have a partition that is all of the disk.
    let mut hybrid = sample("disk-mbr");
    set_partition(&mut hybrid, 3, 0x80, 0x17, 0, 5000);
    conformance::comes_apart(&Case::new("disk", &hybrid, &eicar()));
    // Code with an end mark, and a kernel's header whose numbers look like a partition.
    let mut code = [vec![b'J'; 510], vec![0x55, 0xaa], vec![b'J'; 1 << 16]].concat();
    assert!(!is_disk(&code));
    set_partition(&mut code, 3, 0, 1, 10, 0xffff);
    assert!(!is_disk(&code));
}

#[test]
fn file_systems_and_partitions_beside_each_other_are_both_read() {
    let inner = sample("hfs");
    let mut disk = sample("fat12");
    let first = disk.len().div_ceil(SECTOR_BYTES);
    disk.resize(first * SECTOR_BYTES, 0);
    set_partition(&mut disk, 0, 0, 0xaf, first as u32, (inner.len() / SECTOR_BYTES) as u32);
    for number in 1..4 {
        set_partition(&mut disk, number, 0, 0, 0, 0);
    }
    let disk = [disk, inner].concat();
    let taken = take_apart(&disk, &Passwords::NONE);
    let names: Vec<_> = taken.members.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"README.TXT") && names.iter().any(|name| name.starts_with("partition 1/")), "{names:?}");
    assert!(taken.outcome.suspicious.is_some());
    let names: Vec<_> =
        take_apart(&dmg(&disk, &[ZLIB]), &Passwords::NONE).members.into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name.starts_with("partition 1/")), "{names:?}");
}

#[test]
fn file_systems_without_a_jump_or_an_end_mark_are_read() {
    for name in ["fat12", "fat16"] {
        for (jump, mark) in [(None, [0, 0]), (Some([0; 3]), [0x55, 0xaa]), (Some([0x49, 0, 0]), [0, 0])] {
            let mut image = sample(name);
            let jump = jump.unwrap_or([image[0], image[1], image[2]]);
            image[..3].copy_from_slice(&jump);
            image[510..512].copy_from_slice(&mark);
            conformance::comes_apart(&Case::new("fat", &image, &eicar()));
            // A table that has no room for the clusters is none.
            image[22..24].copy_from_slice(&[1, 0]);
            image[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            image[19..21].copy_from_slice(&[0; 2]);
            assert!(take_apart(&image, &Passwords::NONE).members.is_empty(), "{name}");
        }
    }
}

#[test]
fn files_whose_short_names_begin_with_a_dot_come_out() {
    let mut image = sample("fat12");
    let at = image.windows(11).position(|name| name == b"EICAR   COM").unwrap();
    image[at] = b'.';
    conformance::comes_apart(&Case::new("fat", &image, &eicar()));
}

/// A record of a directory of ISO 9660: a file at a block.
fn disc_record(name: &[u8], attribute_blocks: u8, block: u32, length: u32, flags: u8) -> Vec<u8> {
    let mut record = vec![0, attribute_blocks];
    for number in [block, length] {
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&number.to_be_bytes());
    }
    record.extend_from_slice(&[126, 1, 1, 0, 0, 0, 0, flags, 0, 0, 1, 0, 0, 1, name.len() as u8]);
    record.extend_from_slice(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = record.len() as u8;
    record
}

/// An image of a disc of 2-KiB blocks: these in its root directory, which is block 20, and what blocks hold.
fn disc(records: &[Vec<u8>], blocks: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 40 * 2048];
    let mut put = |block: usize, bytes: &[u8]| image[block * 2048..][..bytes.len()].copy_from_slice(bytes);
    let mut descriptor = b"\x01CD001\x01".to_vec();
    descriptor.resize(2048, 0);
    descriptor[128..132].copy_from_slice(&[0, 8, 8, 0]);
    descriptor[156..190].copy_from_slice(&disc_record(&[0], 0, 20, 2048, 2));
    put(16, &descriptor);
    put(17, b"\xffCD001\x01");
    put(20, &[&[disc_record(&[0], 0, 20, 2048, 2), disc_record(&[1], 0, 20, 2048, 2)], records].concat().concat());
    for (block, bytes) in blocks {
        put(*block, bytes);
    }
    image
}

#[test]
fn files_of_a_disc_that_begin_alike_all_come_out() {
    let (eicar, clean) = (eicar(), vec![b'x'; eicar().len()]);
    let file = |name: &[u8], last| {
        let length = eicar.len() as u32;
        [disc_record(name, 0, 25, 2048, 0x80), disc_record(name, 0, last, length, 0)].concat()
    };
    let image =
        disc(&[file(b"A.TXT;1", 26), file(b"B.COM;1", 27), file(b"C.COM;1", 27)], &[(26, &clean), (27, &eicar)]);
    let taken = take_apart(&image, &Passwords::NONE);
    assert!(taken.outcome.is_complete() && taken.members.len() == 2, "{taken:?}");
    assert!(conformance::is_found(&image, &eicar, &Passwords::NONE));
}

/// An image with a catalog of what to boot, in block 24, with an entry of this kind of medium and so many sectors for an image in block 30.
fn bootable(media: u8, sectors: u16, records: &[Vec<u8>], boot_image: &[u8]) -> Vec<u8> {
    let mut catalog = vec![1];
    catalog.resize(30, 0);
    catalog.extend_from_slice(&[0x55, 0xaa, 0x88, media, 0, 0, 0, 0]);
    catalog.extend_from_slice(&sectors.to_le_bytes());
    catalog.extend_from_slice(&30u32.to_le_bytes());
    let mut boot = b"\0CD001\x01EL TORITO SPECIFICATION".to_vec();
    boot.resize(71, 0);
    boot.push(24);
    disc(records, &[(17, &boot), (18, b"\xffCD001\x01"), (24, &catalog), (30, boot_image)])
}

#[test]
fn what_is_booted_from_a_disc_comes_out() {
    let eicar = eicar();
    let image = bootable(0, 4, &[], &eicar);
    let members = take_apart(&image, &Passwords::NONE).members;
    assert_eq!(members, [("boot-30.img".to_owned(), [&eicar[..], &vec![0; 2048 - eicar.len()]].concat())]);
    conformance::check(&Case::new("iso9660", &image, &eicar), ROUNDS);
    // Some say one sector and mean the file system in it.
    let mut file_system = sample("fat12");
    file_system.truncate(10 * 2048);
    file_system[19..21].copy_from_slice(&[20, 0]);
    file_system[510..512].copy_from_slice(&[0x55, 0xaa]);
    let image = bootable(0, 1, &[], &file_system);
    assert_eq!(take_apart(&image, &Passwords::NONE).members[0].1.len(), 20 * 512);
    // As nearly every disc to install from, which has a file that firmware reads the beginning of.
    let file = disc_record(b"BOOT.IMG;1", 0, 30, 5000, 0);
    let image = bootable(0, 4, &[file], &eicar);
    let taken = take_apart(&image, &Passwords::NONE);
    assert_eq!((taken.members.len(), taken.outcome.is_complete()), (1, true));
    // A floppy disk that is not all there.
    assert!(take_apart(&bootable(2, 1, &[], &eicar), &Passwords::NONE).outcome.broken.is_some());
}

#[test]
fn each_session_of_a_disc_comes_out() {
    let eicar = eicar();
    let of_session = disc(&[disc_record(b"E.COM;1", 0, 30, eicar.len() as u32, 0)], &[(30, &eicar)]);
    let volume = |root: u32| {
        let mut volume = of_session[16 * 2048..17 * 2048].to_vec();
        volume[156..190].copy_from_slice(&disc_record(&[0], 0, root, 2048, 2));
        volume
    };
    // The root directory of the last one lists a file, and that of the first, in block 22, another.
    let records = [disc_record(&[0], 0, 22, 2048, 2), disc_record(b"E.COM;1", 0, 30, eicar.len() as u32, 0)];
    let own = disc_record(b"A.TXT;1", 0, 28, 5, 0);
    let image =
        disc(std::slice::from_ref(&own), &[(22, &records.concat()), (28, b"clean"), (30, &eicar), (33, &volume(22))]);
    let taken = take_apart(&image, &Passwords::NONE);
    let expected = [("A.TXT".to_owned(), b"clean".to_vec()), ("E.COM".to_owned(), eicar.clone())];
    assert_eq!((taken.members, taken.outcome.detail()), (expected.to_vec(), String::new()));
    conformance::survives_mutations(&Case::new("iso9660", &image, &eicar), ROUNDS);
    // Whose places count from where it begins itself, as in images that are a disk with partitions as well.
    let partitioned = [disc(std::slice::from_ref(&own), &[(28, b"clean")]), of_session.clone()].concat();
    assert_eq!(take_apart(&partitioned, &Passwords::NONE).members, expected);
    // In a file it is that file's, and what only looks like a volume is none.
    let mut within = disc(&[disc_record(b"A.ISO;1", 0, 40, of_session.len() as u32, 0)], &[(33, &volume(35))]);
    within.extend_from_slice(&of_session);
    let taken = take_apart(&within, &Passwords::NONE);
    assert_eq!((taken.members.len(), taken.outcome.is_complete()), (1, true), "{:?}", taken.outcome);
}

#[test]
fn attributes_before_a_file_of_a_disc_hide_nothing() {
    let eicar = eicar();
    let length = eicar.len() as u32;
    let has = |image: &[u8]| take_apart(image, &Passwords::NONE).members.iter().any(|(_, content)| *content == eicar);
    for block in [25, 26] {
        assert!(has(&disc(&[disc_record(b"E.COM;1", 1, 25, length, 0)], &[(block, &eicar)])), "{block}");
        // A directory, for those who find it before and those who find it behind its attributes.
        let file = disc_record(b"E.COM;1", 0, 30, length, 0);
        let image = disc(&[disc_record(b"D", 1, 25, 2048, 2)], &[(block, &file), (30, &eicar)]);
        assert!(has(&image), "{block}");
    }
    // What is no directory but its attributes is nothing to remark.
    let file = disc_record(b"E.COM;1", 0, 30, length, 0);
    let image = disc(&[disc_record(b"D", 1, 25, 2048, 2)], &[(25, &[7; 250]), (26, &file), (30, &eicar)]);
    conformance::comes_apart(&Case::new("iso9660", &image, &eicar));
    // Two directories at one place, one of which ends before the file.
    let files = [disc_record(b"A.TXT;1", 0, 31, 5, 0), file].concat();
    let first = disc_record(b"A.TXT;1", 0, 31, 5, 0).len() as u32;
    let records = [disc_record(b"C", 0, 25, first, 2), disc_record(b"D", 0, 25, 2048, 2)];
    assert!(has(&disc(&records, &[(25, &files), (30, &eicar), (31, b"clean")])));
}

#[test]
fn virtual_disks_are_read_by_their_footer_if_its_copy_is_lost() {
    let mut file = sample("vhd");
    file[..512].fill(0);
    conformance::comes_apart(&Case::new("vhd", &file, &eicar()));
}

#[test]
fn encrypted_disk_images_of_macs_are_told() {
    let file = [b"encrcdsa\0\0\0\x02".as_slice(), &[7; 4096]].concat();
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(!taken.outcome.protected.is_empty() && taken.outcome.broken.is_none(), "{:?}", taken.outcome);
}

#[test]
fn chunks_that_lie_elsewhere_are_told() {
    let disk = sample("hfs");
    let longer = [disk.as_slice(), &[1; 1 << 15]].concat();
    let mut cut = dmg(&longer, &[ZLIB]);
    let end = cut.len() - 512;
    cut[end + 24..end + 32].copy_from_slice(&7u64.to_be_bytes());
    assert!(!take_apart(&cut, &Passwords::NONE).outcome.is_complete());
}

#[test]
fn every_stream_of_a_file_on_ntfs_comes_out() {
    let taken = take_apart(&sample("ntfs"), &Passwords::NONE);
    let names: Vec<_> = taken.members.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["readme.txt", "readme.txt:hidden.com", "folder/numbers.txt", "eicar.com"] {
        assert!(names.contains(&name) || name == "eicar.com", "{name} in {names:?}");
    }
    let hidden = taken.members.iter().find(|(name, _)| name == "readme.txt:hidden.com").unwrap();
    assert_eq!(hidden.1, eicar());
}

/// Changes each place of a file system's image where some bytes are, one after the other; none of it may take long or go unnoticed as
/// anything but an outcome.
fn replaced(name: &str, from: &[u8], to: &[u8]) -> usize {
    let file = sample(name);
    let format = SAMPLES.iter().find(|sample| sample.name == name).unwrap().format;
    let format = ContainerFormat::named(format).unwrap();
    let places: Vec<usize> = (0..file.len()).step_by(2).filter(|at| file[*at..].starts_with(from)).take(20).collect();
    for at in &places {
        let mut changed = file.clone();
        changed[*at..at + to.len()].copy_from_slice(to);
        take_apart_as(format, &changed, 0, &Passwords::NONE);
    }
    places.len()
}

#[test]
fn what_leads_back_to_itself_ends() {
    // Extent trees whose first node says that it is an index, as deep as it may be and deeper.
    for depth in [1, 5, 6, 0xffff_u16] {
        let [low, high] = depth.to_le_bytes();
        assert!(replaced("ext4", &[0x0a, 0xf3, 1, 0, 4, 0, 0, 0], &[0x0a, 0xf3, 1, 0, 4, 0, low, high]) > 0);
    }
    // A directory that has the root in it, which has it.
    let mut ext = sample("ext2");
    let at = ext.windows(6).position(|name| name == b"folder").unwrap() - 8;
    ext[at..at + 4].copy_from_slice(&2u32.to_le_bytes());
    let taken = take_apart(&ext, &Passwords::NONE);
    assert!(taken.members.iter().any(|(_, content)| *content == eicar()), "{:?}", taken.outcome);
    // A file whose folder is itself, and so on.
    let mut ntfs = sample("ntfs");
    let name: Vec<u8> = "folder".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let names: Vec<usize> = (0..ntfs.len() - name.len()).filter(|at| ntfs[*at..].starts_with(&name)).collect();
    let own = names.iter().copied().filter(|at| ntfs[at - 66..][..6] == [5, 0, 0, 0, 0, 0]).collect::<Vec<_>>();
    assert!(!own.is_empty());
    for at in own {
        let record = at / 1024 * 1024;
        let number = u32::from_le_bytes(ntfs[record + 44..record + 48].try_into().unwrap());
        ntfs[at - 66..at - 62].copy_from_slice(&number.to_le_bytes());
    }
    take_apart(&ntfs, &Passwords::NONE);
}

#[test]
fn what_lies_about_its_length_is_told() {
    // A file of 8 EiB on ext2: what is there comes out, and zeros up to a limit.
    let mut ext = sample("ext2");
    let inode = ext.windows(4).position(|length| length == 68u32.to_le_bytes()).unwrap();
    ext[inode + 3] = 0x7f;
    assert!(!take_apart(&ext, &Passwords::NONE).outcome.is_complete());
    // A virtual disk of 62 TiB that is two tables.
    let mut vmdk = sample("vmdk");
    vmdk[12..20].copy_from_slice(&(1u64 << 36).to_le_bytes());
    take_apart(&vmdk, &Passwords::NONE);
    vmdk[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(!take_apart(&vmdk, &Passwords::NONE).outcome.is_complete());
}

#[test]
fn a_solid_image_of_windows_is_told() {
    let file = samples::unpack(include_str!("samples/wim-solid.hex"));
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(
        taken.outcome.broken.as_deref().is_some_and(|reason| reason.contains("compression")),
        "{:?}",
        taken.outcome
    );
}

#[test]
fn words_of_a_boot_sector_are_no_partitions() {
    for name in ["fat16", "ntfs"] {
        let mut volume = sample(name);
        // Where Windows has what it says if it can't start.
        volume[446..510].copy_from_slice(b"Disk error, press any key to restart, or remove disks. A drive! ");
        volume[510..512].copy_from_slice(&[0x55, 0xaa]);
        conformance::comes_apart(&Case::new("dmg", &dmg(&volume, &[ZLIB]), &eicar()));
    }
}
