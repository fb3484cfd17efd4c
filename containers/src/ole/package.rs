//! Objects of OLE 1 and the packages in them: a file put into a document with its name. Format: [MS-OLEDS] 2.2 and 2.3.6; what
//! a package looks like inside is written down nowhere official, and the same in all programs.

use memchr::memmem;

use crate::container::display_name;
use crate::fields::{le16, le32, until_zero};

/// How much of a stream's beginning is looked at for a package's header: two names and a path, which are as long as somebody made them.
pub(crate) const HEADER_BYTES_MAX: u64 = 64 * 1024;
const EMBEDDED: u32 = 2;
/// What a package begins with: it is shown with its name.
const TYPE: u16 = 2;
/// The longest name of an object's class, or of what it was linked to.
const CLASS_BYTES_MAX: usize = 1024;

/// A file in a package: its name, and where its content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) length: u32,
    /// Its name is there and can be read.
    is_named: bool,
}

/// The file in the native data of a package, which begins at `start`. Only the beginning of the data is needed.
pub(crate) fn package(data: &[u8], start: usize) -> Option<Package> {
    if le16(data, start)? == TYPE { package_of_any_type(data, start) } else { None }
}

/// The same where no name says that there is one, which some programs find nevertheless: behind a length, without it, and under a type
/// that they don't ask for. It has a name, and its file is there.
pub(crate) fn unnamed_package(data: &[u8], length: u64) -> Option<Package> {
    [4, 0].into_iter().find_map(|start| package_of_any_type(data, start).filter(|package| package.is_one(length)))
}

/// Where in data whose header can't be trusted a package's file lies. Any package begins with a type, whose second byte is zero: so no
/// name is gone through for more than a few of them.
pub(crate) fn hidden_package(data: &[u8]) -> Option<Package> {
    memmem::find_iter(data, &TYPE.to_le_bytes())
        .find_map(|start| package(data, start).filter(|package| package.is_one(u64::MAX)))
}

impl Package {
    /// Whether it has a name that can be read, and a file in so many bytes.
    fn is_one(&self, length: u64) -> bool {
        let end = (self.offset as u64).saturating_add(u64::from(self.length));
        self.is_named && self.length > 0 && end <= length
    }
}

fn package_of_any_type(data: &[u8], start: usize) -> Option<Package> {
    let label_at = start.checked_add(2)?;
    if le16(data, start)? > 0xff {
        return None;
    }
    let label = until_zero(data.get(label_at..)?);
    let path_at = label_at + label.len() + 1;
    let path = until_zero(data.get(path_at..)?);
    // Behind the path: 0, whether the content lies here (3), and the path of a temporary file with its length.
    let kind_at = path_at + path.len() + 1;
    if le16(data, kind_at + 2)? != 3 {
        return None;
    }
    let temporary_at = kind_at + 4;
    let size_at = usize::try_from(le32(data, temporary_at)?).ok()?.checked_add(temporary_at + 4)?;
    let length = le32(data, size_at)?;
    let name = if label.is_empty() { path.rsplit(|byte| matches!(byte, b'\\' | b'/')).next()? } else { label };
    let is_named = !name.is_empty() && !name.iter().any(u8::is_ascii_control);
    Some(Package { name: display_name(name), offset: size_at + 4, length, is_named })
}

/// An embedded object of OLE 1: the class, and where its native data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Embedded {
    pub(crate) class: Vec<u8>,
    pub(crate) offset: usize,
    pub(crate) length: u32,
}

/// The object that `data` begins with, if it is an embedded one. Only the beginning of the data is needed.
pub(crate) fn embedded(data: &[u8]) -> Option<Embedded> {
    if le32(data, 4)? != EMBEDDED {
        return None;
    }
    let mut at = 8;
    let mut strings = [&[][..]; 3];
    for string in &mut strings {
        let length = usize::try_from(le32(data, at)?).ok().filter(|length| *length <= CLASS_BYTES_MAX)?;
        *string = data.get(at + 4..at.checked_add(4)?.checked_add(length)?)?;
        at += 4 + length;
    }
    // Other programs go by the zero that ends a name: where that is not its last byte, the lengths lie.
    if strings.iter().any(|string| !string.is_empty() && until_zero(string).len() + 1 != string.len()) {
        return None;
    }
    let [class, ..] = strings;
    Some(Embedded { class: until_zero(class).to_vec(), offset: at + 4, length: le32(data, at)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_says_its_name_and_where_its_content_lies() {
        let data = b"\x02\0eicar.com\0C:\\x\\eicar.com\0\0\0\x03\0\x03\0\0\0C:\0\x05\0\0\0hello";
        let expected = Package { name: "eicar.com".to_owned(), offset: data.len() - 5, length: 5, is_named: true };
        assert_eq!(package(data, 0), Some(expected));
        for length in 0..data.len() - 5 {
            assert_eq!(package(&data[..length], 0), None);
        }
    }

    #[test]
    fn packages_are_found_without_a_name_and_behind_lying_headers() {
        let package = b"\x02\0eicar.com\0C:\\x\\eicar.com\0\0\0\x03\0\x03\0\0\0C:\0\x05\0\0\0hello";
        let file = |data: &[u8], package: Option<Package>| {
            let package = package.unwrap();
            data[package.offset..].starts_with(b"hello") && package.length == 5
        };
        for before in [&b""[..], b"\x40\0\0\0"] {
            for kind in [2, 3, 0x55] {
                let mut data = [before, package].concat();
                data[before.len()] = kind;
                let length = data.len() as u64;
                assert!(file(&data, unnamed_package(&data, length)), "{kind}");
                assert_eq!(unnamed_package(&data, length - 1), None, "its file is not there");
            }
        }
        let hidden = [&b"\x02\0\x02\0".repeat(1000)[..], package].concat();
        assert!(file(&hidden, hidden_package(&hidden)));
        for data in [&[0; 70_000][..], &b"\x02\0a".repeat(20_000), &b"\x02\0\0\0\0\0\x03\0".repeat(8000)] {
            assert_eq!((hidden_package(data), unnamed_package(data, data.len() as u64)), (None, None));
        }
    }

    #[test]
    fn an_object_whose_names_lie_is_none() {
        for class in [&b"\xff\xff\xff\x7fPackage\0"[..], b"\x0a\0\0\0Package\0aa", b"\x04\0\0\0Pack"] {
            let data = [&b"\x01\x05\0\0\x02\0\0\0"[..], class, b"\0\0\0\0\0\0\0\0\x03\0\0\0abc"].concat();
            assert_eq!(embedded(&data), None);
        }
    }

    #[test]
    fn an_object_says_its_class() {
        let data = b"\x01\x05\0\0\x02\0\0\0\x08\0\0\0Package\0\0\0\0\0\0\0\0\0\x03\0\0\0abc";
        let expected = Embedded { class: b"Package".to_vec(), offset: data.len() - 3, length: 3 };
        assert_eq!(embedded(data), Some(expected));
    }
}
