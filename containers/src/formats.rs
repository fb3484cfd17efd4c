//! The table of container formats. A format is a module with a `FORMAT` and one line here.
//!
//! To add one: write the module, with a `pub(crate) static FORMAT: Format` whose probe finds it and whose extractor hands out
//! members through [`crate::container::hand_out`]; add the line; and give [`crate::conformance::check`] a file of it in a test
//! of its own under `tests/`. Types, limits, nesting, passwords and result codes follow from the table.
//!
//! The order is that in which a file of several formats is taken apart, and the first one names its type when nothing more
//! precise is known: formats that begin with a magic number before those that are told by structure.

use crate::format::Format;
use crate::{
    activemime, appledouble, ar, arc, asar, binhex, cab, chm, cms, coded, cpio, disk, elf, exfat, ext, fat, hfs,
    iso9660, lnk, lzh, mail, nsis, ntfs, ole, onenote, pdf, pe, pgp, pyinstaller, rar, rpm, rtf, script_encoder,
    sevenz, squashfs, stream, swf, tar, text, textual, udf, unopened, upx, utf16, wim, xar, zip,
};

/// Every format that this build takes apart.
pub static FORMATS: &[&Format] = &[
    &zip::FORMAT,
    &sevenz::FORMAT,
    &rar::FORMAT,
    &cab::FORMAT,
    &xar::FORMAT,
    &chm::FORMAT,
    &wim::FORMAT,
    &nsis::FORMAT,
    &stream::GZIP,
    &stream::BZIP2,
    &stream::XZ,
    &stream::ZSTD,
    &coded::LZ4,
    &coded::LZIP,
    &coded::LZOP,
    &coded::COMPRESS,
    &coded::SZDD,
    &ole::FORMAT,
    &pdf::FORMAT,
    &rtf::FORMAT,
    &onenote::FORMAT,
    &lnk::FORMAT,
    &activemime::FORMAT,
    &swf::FORMAT,
    &asar::FORMAT,
    &appledouble::FORMAT,
    &cms::FORMAT,
    &pgp::FORMAT,
    &mail::tnef::FORMAT,
    &mail::MBOX,
    &mail::EML,
    &ar::FORMAT,
    &rpm::FORMAT,
    &squashfs::FORMAT,
    &tar::FORMAT,
    &cpio::FORMAT,
    &iso9660::FORMAT,
    &udf::FORMAT,
    &fat::FORMAT,
    &ntfs::FORMAT,
    &exfat::FORMAT,
    &ext::FORMAT,
    &hfs::FORMAT,
    &disk::DMG,
    &disk::VHD,
    &disk::VHDX,
    &disk::VMDK,
    &disk::DISK,
    &lzh::ARJ,
    &lzh::LZH,
    &arc::FORMAT,
    &coded::LZMA,
    &stream::ZLIB,
    &textual::UUENCODE,
    &textual::YENC,
    &binhex::FORMAT,
    &script_encoder::FORMAT,
    &text::FORMAT,
    &utf16::FORMAT,
    &pe::FORMAT,
    &elf::FORMAT,
    &pyinstaller::FORMAT,
    &pyinstaller::MODULES,
    &upx::FORMAT,
    &unopened::FORMAT,
];
