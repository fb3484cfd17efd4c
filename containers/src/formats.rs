//! The table of container formats. A format is a module with a `FORMAT` and one line here.
//!
//! To add one: write the module, with a `pub(crate) static FORMAT: Format` whose probe finds it and whose extractor hands out
//! members through [`crate::container::hand_out`]; add the line; and give [`crate::conformance::check`] a file of it in a test
//! of its own under `tests/`. Types, limits, nesting, passwords and result codes follow from the table.
//!
//! The order is that in which a file of several formats is taken apart, and the first one names its type when nothing more
//! precise is known: formats that begin with a magic number before those that are told by structure.

use crate::format::Format;
use crate::{activemime, ar, mail, ole, onenote, pdf, rtf, stream, tar, text, zip};

/// Every format that this build takes apart.
pub static FORMATS: &[&Format] = &[
    &zip::FORMAT,
    &stream::GZIP,
    &stream::BZIP2,
    &stream::XZ,
    &stream::ZSTD,
    &ole::FORMAT,
    &pdf::FORMAT,
    &rtf::FORMAT,
    &onenote::FORMAT,
    &activemime::FORMAT,
    &mail::tnef::FORMAT,
    &mail::MBOX,
    &mail::EML,
    &ar::FORMAT,
    &tar::FORMAT,
    &text::FORMAT,
];
