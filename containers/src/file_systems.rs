//! The file systems that a disk's partitions may have.

use std::io;

use crate::container::ReadSeek;
use crate::parts::Out;
use crate::{exfat, ext, fat, hfs, ntfs, udf};

/// A file system that is read here.
pub(crate) struct FileSystem {
    /// Whether its first sector is its own, so that what may look like a partition table there is none.
    pub(crate) owns_first_sector: bool,
    /// Whether a volume that begins like this has it. It is shown [`crate::format::HEAD_BYTES`].
    is_one: fn(&[u8]) -> bool,
    /// Hands out all files of a volume, in a folder.
    pub(crate) volume: fn(&mut dyn ReadSeek, &str, &mut Out<'_, '_>) -> io::Result<()>,
}

static FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem { owns_first_sector: true, is_one: fat::is_one, volume: fat::volume },
    FileSystem { owns_first_sector: true, is_one: ntfs::is_one, volume: ntfs::volume },
    FileSystem { owns_first_sector: true, is_one: exfat::is_one, volume: exfat::volume },
    FileSystem { owns_first_sector: false, is_one: ext::is_one, volume: ext::volume },
    FileSystem { owns_first_sector: false, is_one: hfs::is_one, volume: hfs::volume },
    FileSystem { owns_first_sector: false, is_one: udf::is_one, volume: udf::volume },
];

/// The file system of a volume that begins like this.
pub(crate) fn of(head: &[u8]) -> Option<&'static FileSystem> {
    FILE_SYSTEMS.iter().find(|one| (one.is_one)(head))
}
