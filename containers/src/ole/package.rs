//! Objects of OLE 1 and the packages in them: a file put into a document with its name. Format: [MS-OLEDS] 2.2 and 2.3.6; what
//! a package looks like inside is written down nowhere official, and the same in all programs.

use crate::container::display_name;
use crate::fields::{le16, le32, until_zero};

/// How much of a stream's beginning is looked at for a package's header: two names and a path, which are as long as somebody made them.
pub(crate) const HEADER_BYTES_MAX: u64 = 64 * 1024;
const EMBEDDED: u32 = 2;

/// A file in a package: its name, and where its content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) length: u32,
}

/// The file in the native data of a package, which begins at `start`. Only the beginning of the data is needed.
pub(crate) fn package(data: &[u8], start: usize) -> Option<Package> {
    let label_at = start + 2;
    if le16(data, start)? != 2 {
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
    Some(Package { name: display_name(name), offset: size_at + 4, length })
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
        let length = usize::try_from(le32(data, at)?).ok()?;
        *string = data.get(at + 4..at.checked_add(4)?.checked_add(length)?)?;
        at += 4 + length;
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
        let expected = Package { name: "eicar.com".to_owned(), offset: data.len() - 5, length: 5 };
        assert_eq!(package(data, 0), Some(expected));
        for length in 0..data.len() - 5 {
            assert_eq!(package(&data[..length], 0), None);
        }
    }

    #[test]
    fn an_object_says_its_class() {
        let data = b"\x01\x05\0\0\x02\0\0\0\x08\0\0\0Package\0\0\0\0\0\0\0\0\0\x03\0\0\0abc";
        let expected = Embedded { class: b"Package".to_vec(), offset: data.len() - 3, length: 3 };
        assert_eq!(embedded(data), Some(expected));
    }
}
