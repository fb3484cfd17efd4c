//! The file systems that a file may hold by itself, and a disk's partitions may have.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::outcome::ExtractionOutcome;
use crate::parts::Out;
use crate::{exfat, ext, fat, hfs, ntfs, udf};

/// A file system that is read here. As an [`Extractor`] it reads a file that is one volume.
pub(crate) struct FileSystem {
    /// Whether its first sector is its own, so that what may look like a partition table there is none.
    pub(crate) owns_first_sector: bool,
    /// Whether a volume that begins like this has it. It is shown [`crate::format::HEAD_BYTES`].
    pub(crate) is_one: fn(&[u8]) -> bool,
    /// Hands out all files of a volume, in a folder.
    pub(crate) volume: fn(&mut dyn ReadSeek, &str, &mut Out<'_, '_>) -> io::Result<()>,
    /// What is said of a volume that does not come apart.
    pub(crate) broken: &'static str,
}

impl Extractor for FileSystem {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = (self.volume)(&mut *container.input, "", &mut out);
        out.end(self.broken, result)
    }
}

static FILE_SYSTEMS: [&FileSystem; 6] = [
    &fat::FILE_SYSTEM,
    &ntfs::FILE_SYSTEM,
    &exfat::FILE_SYSTEM,
    &ext::FILE_SYSTEM,
    &hfs::FILE_SYSTEM,
    &udf::FILE_SYSTEM,
];

/// The file system of a volume that begins like this.
pub(crate) fn of(head: &[u8]) -> Option<&'static FileSystem> {
    FILE_SYSTEMS.into_iter().find(|one| (one.is_one)(head))
}
