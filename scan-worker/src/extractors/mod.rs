//! The container formats that this build takes apart.

mod ar;
mod stream;
mod tar;
mod zip;

use serde::{Deserialize, Serialize};

use crate::extractor::Extractor;

/// A format that can be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerFormat {
    /// ZIP, and whatever is one inside: office documents, Java archives, packages.
    Zip,
    /// Tape archive in any of its dialects.
    Tar,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// Unix archive: Debian packages, static libraries.
    Ar,
}

impl ContainerFormat {
    /// What takes it apart.
    pub fn extractor(self) -> &'static dyn Extractor {
        match self {
            Self::Zip => &zip::Zip,
            Self::Tar => &tar::Tar,
            Self::Gzip => &stream::GZIP,
            Self::Bzip2 => &stream::BZIP2,
            Self::Xz => &stream::XZ,
            Self::Zstd => &stream::ZSTD,
            Self::Ar => &ar::Ar,
        }
    }
}

pub(crate) use self::tar::is_header as is_tar_header;

/// What every Unix archive begins with.
pub(crate) fn ar_magic() -> &'static [u8] {
    ar::MAGIC
}
