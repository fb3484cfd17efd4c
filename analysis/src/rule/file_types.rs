//! Which types of files a rule is about: patterns over what a file was found to be, the lists made of them, and the lists
//! of files that are not to be scanned.
//!
//! A pattern that lets something pass (allowed, skipped) never goes by the file's name alone: a name is what its sender
//! wishes. One that blocks does, since a name that is blocked is reason enough.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::analysis::FileInfo;
use crate::verdict::ResultCode;

/// Most patterns or hashes in one list of a rule. An analysis keeps a copy of its rule, so a longer list of hashes belongs
/// into a worker's hash lists.
pub const LIST_MAX: usize = 1000;

/// The letters of type groups that `group:` patterns know.
const GROUPS: &str = "ADEGIMOPTZ";

/// A kind of files: `application/pdf`, `image/*`, `.exe` or `group:E`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TypePattern {
    /// A MIME type, or with `*` behind the slash all below it.
    Mime(String),
    /// An extension, without its dot, in lower case.
    Extension(String),
    /// A group of types: A archive, D document, E executable, G graphic, I disk image, M media, O other, P PDF, T text, Z mail.
    Group(char),
}

/// What is asked of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Whether the file may pass: only its content counts, and its name where that says nothing else.
    ToAdmit {
        /// Whether name and content agree.
        name_agrees: bool,
    },
    /// Whether the file is to be stopped: content or name is enough.
    ToBlock,
}

impl TypePattern {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().to_ascii_lowercase();
        let malformed = || {
            format!("{text:?} is no file type: write a MIME type (\"image/*\"), an extension (\".exe\") or \"group:E\"")
        };
        let word =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c));
        if let Some(group) = text.strip_prefix("group:") {
            let letter = group.trim().to_ascii_uppercase();
            return match letter.chars().next() {
                Some(letter_char) if letter.len() == 1 && GROUPS.contains(letter_char) => Ok(Self::Group(letter_char)),
                _ => Err(format!("{text:?} is no group: the groups are {GROUPS}")),
            };
        }
        if let Some((kind, sub)) = text.split_once('/') {
            return if word(kind) && (sub == "*" || word(sub)) { Ok(Self::Mime(text)) } else { Err(malformed()) };
        }
        let extension = text.strip_prefix('.').unwrap_or(&text);
        if word(extension) { Ok(Self::Extension(extension.to_owned())) } else { Err(malformed()) }
    }

    /// Whether a file is of this kind.
    pub fn matches(&self, file: &FileInfo, asked: Asked) -> bool {
        match self {
            Self::Mime(pattern) => match pattern.strip_suffix('*') {
                Some(prefix) => file.file_type.starts_with(prefix),
                None => file.file_type == *pattern,
            },
            Self::Group(group) => file.type_category.iter().any(|category| category.chars().eq([*group])),
            Self::Extension(extension) => {
                let named = || extension_of(&file.display_name).is_some_and(|named| named == *extension);
                file.extension.eq_ignore_ascii_case(extension)
                    || match asked {
                        Asked::ToAdmit { name_agrees } => name_agrees && named(),
                        Asked::ToBlock => named() || ends_in(&file.display_name, extension),
                    }
            }
        }
    }
}

/// Whether a name ends in a dot and this extension, as systems that go by names read it: `.js` is a script too, and `a.tar.gz`
/// ends in `tar.gz`.
fn ends_in(name: &str, extension: &str) -> bool {
    let name = name.trim_end_matches([' ', '.']).to_lowercase();
    name.strip_suffix(extension).is_some_and(|stem| stem.ends_with('.'))
}

/// The extension in a file's name, in lower case, without spaces and dots at the end, which some systems ignore.
pub fn extension_of(name: &str) -> Option<String> {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let base = base.trim_end_matches([' ', '.']);
    let (stem, extension) = base.rsplit_once('.')?;
    (!stem.is_empty() && !extension.is_empty()).then(|| extension.trim().to_lowercase())
}

impl fmt::Display for TypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mime(mime) => f.write_str(mime),
            Self::Extension(extension) => write!(f, ".{extension}"),
            Self::Group(group) => write!(f, "group:{group}"),
        }
    }
}

impl Serialize for TypePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TypePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a rule says about types of files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileTypes {
    /// Files of these types are blocked (8), nested ones too. Default: none.
    pub blocked: Vec<TypePattern>,
    /// Files of any other type are blocked (8), nested ones too. Default: empty, which is no such list.
    pub allowed: Vec<TypePattern>,
    /// Whether a file whose name claims another type than its content is blocked (17). Default: it is only said.
    pub mismatch: bool,
    /// Whether a name that hides its extension (double, behind spaces, written backwards) is blocked (17). Default: it is only said.
    pub spoofing: bool,
}

impl FileTypes {
    /// Why a file of this type may not pass, if it may not.
    pub fn forbids(&self, file: &FileInfo, name_agrees: bool) -> Option<String> {
        let shown = if file.file_type.is_empty() { "unknown" } else { &file.file_type };
        if let Some(pattern) = self.blocked.iter().find(|pattern| pattern.matches(file, Asked::ToBlock)) {
            return Some(format!("the rule blocks {pattern}, and the file is {shown}"));
        }
        let admitted = |pattern: &TypePattern| pattern.matches(file, Asked::ToAdmit { name_agrees });
        if !self.allowed.is_empty() && !self.allowed.iter().any(admitted) {
            return Some(format!("the rule allows certain types only, and {shown} is none of them"));
        }
        None
    }
}

/// A digest as people write it: MD5, SHA-1, SHA-256 or SHA-512 in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct FileHash(String);

impl FileHash {
    /// Whether it is one of a file's digests.
    pub fn is_of(&self, file: &FileInfo) -> bool {
        [&file.md5, &file.sha1, &file.sha256, &file.sha512].contains(&&self.0)
    }

    /// The kind of digest that it is, if a file's was not taken: whether it is one of the file's is not known then.
    pub fn unknown_of(&self, file: &FileInfo) -> Option<&'static str> {
        let (kind, digest) = match self.0.len() {
            32 => ("MD5", &file.md5),
            40 => ("SHA-1", &file.sha1),
            64 => ("SHA-256", &file.sha256),
            _ => ("SHA-512", &file.sha512),
        };
        digest.is_empty().then_some(kind)
    }
}

impl<'de> Deserialize<'de> for FileHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?.trim().to_ascii_lowercase();
        if [32, 40, 64, 128].contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(text));
        }
        Err(de::Error::custom(format!("{text:?} is no MD5, SHA-1, SHA-256 or SHA-512 in hexadecimal")))
    }
}

/// What a rule does not have scanned. A file on these lists is shown to no engine. By its hash it is not opened
/// either; by type or size it is, and what is in it is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Skip {
    /// Files with one of these digests. They are Whitelisted (7).
    pub hashes: Vec<FileHash>,
    /// Files of these types.
    pub types: Vec<TypePattern>,
    /// Files longer than this.
    pub larger_than_bytes: Option<u64>,
    /// The result of what is skipped by type or size: 10, Not Scanned, or 7, Whitelisted, which passes. Default 10.
    pub code: ResultCode,
}

impl Default for Skip {
    fn default() -> Self {
        Self { hashes: Vec::new(), types: Vec::new(), larger_than_bytes: None, code: ResultCode::NOT_SCANNED }
    }
}

/// That a file is not scanned, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its result.
    pub code: ResultCode,
    /// Which list it is on.
    pub reason: SkipReason,
}

/// Which list a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SkipReason {
    /// One of its digests.
    Hash,
    /// Its type.
    Type,
    /// Its length.
    Size,
}

impl Skip {
    /// Whether a file is not to be scanned.
    pub fn applies(&self, file: &FileInfo, name_agrees: bool) -> Option<Skipped> {
        let admitted = |pattern: &TypePattern| pattern.matches(file, Asked::ToAdmit { name_agrees });
        if self.hashes.iter().any(|hash| hash.is_of(file)) {
            return Some(Skipped { code: ResultCode::WHITELISTED, reason: SkipReason::Hash });
        }
        if self.types.iter().any(admitted) {
            return Some(Skipped { code: self.code, reason: SkipReason::Type });
        }
        let too_long = self.larger_than_bytes.is_some_and(|longest| file.size_bytes > longest);
        too_long.then_some(Skipped { code: self.code, reason: SkipReason::Size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, mime: &str, extension: &str, group: &str) -> FileInfo {
        FileInfo {
            display_name: name.to_owned(),
            file_type: mime.to_owned(),
            extension: extension.to_owned(),
            type_category: vec![group.to_owned()],
            size_bytes: 100,
            sha256: "ab".repeat(32),
            ..FileInfo::default()
        }
    }

    fn pattern(text: &str) -> TypePattern {
        TypePattern::parse(text).unwrap()
    }

    #[test]
    fn patterns_are_read_shown_and_refused() {
        for (text, shown) in [
            ("Application/PDF", "application/pdf"),
            ("image/*", "image/*"),
            (".EXE", ".exe"),
            ("tar.gz", ".tar.gz"),
            ("group:e", "group:E"),
        ] {
            assert_eq!(pattern(text).to_string(), shown);
            assert_eq!(pattern(shown), pattern(text));
        }
        for text in ["", ".", "/", "image/", "/png", "*/*", "group:", "group:X", "group:AE", "a b", "image/p*"] {
            assert!(TypePattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_can_stop_a_file_but_never_admit_one_of_another_content() {
        let disguised = file("holiday.jpg", "application/vnd.microsoft.portable-executable", "exe", "E");
        let script = file("run.js", "text/plain", "txt", "T");
        let admit = |name_agrees| Asked::ToAdmit { name_agrees };
        assert!(pattern(".exe").matches(&disguised, admit(false)));
        assert!(!pattern(".jpg").matches(&disguised, admit(false)));
        assert!(pattern(".jpg").matches(&disguised, Asked::ToBlock));
        assert!(pattern(".js").matches(&script, admit(true)));
        assert!(pattern(".js").matches(&script, Asked::ToBlock));
        for (name, blocked, is) in [
            (".js", ".js", true),
            ("folder/.JS. ", ".js", true),
            ("a.tar.gz", ".tar.gz", true),
            ("xjs", ".js", false),
            ("a.js.txt", ".js", false),
            ("js", ".js", false),
        ] {
            let named = file(name, "text/plain", "txt", "T");
            assert_eq!(pattern(blocked).matches(&named, Asked::ToBlock), is, "{name}");
        }
        assert!(!pattern(".js").matches(&file(".js", "text/plain", "txt", "T"), admit(true)));
        assert!(pattern("group:E").matches(&disguised, admit(false)));
        assert!(pattern("text/*").matches(&script, admit(true)));
        assert!(!pattern("text/*").matches(&disguised, admit(true)));
    }

    #[test]
    fn types_are_forbidden_by_either_list() {
        let exe = file("a.exe", "application/vnd.microsoft.portable-executable", "exe", "E");
        let text = file("a.txt", "text/plain", "txt", "T");
        let types = FileTypes { blocked: vec![pattern("group:E")], ..FileTypes::default() };
        assert!(types.forbids(&exe, true).unwrap().contains("group:E"));
        assert_eq!(types.forbids(&text, true), None);
        let types = FileTypes { allowed: vec![pattern(".exe")], ..FileTypes::default() };
        assert_eq!(types.forbids(&exe, true), None);
        assert!(types.forbids(&text, true).unwrap().contains("text/plain"));
        assert_eq!(FileTypes::default().forbids(&exe, false), None);
    }

    #[test]
    fn what_is_skipped_says_by_what() {
        let text = file("a.txt", "text/plain", "txt", "T");
        let skip = Skip { types: vec![pattern("text/*")], ..Skip::default() };
        let by = |reason, code| Some(Skipped { code, reason });
        assert_eq!(skip.applies(&text, true), by(SkipReason::Type, ResultCode::NOT_SCANNED));
        let skip = Skip { larger_than_bytes: Some(99), code: ResultCode::WHITELISTED, ..Skip::default() };
        assert_eq!(skip.applies(&text, true), by(SkipReason::Size, ResultCode::WHITELISTED));
        let skip = Skip { hashes: vec![FileHash("ab".repeat(32))], larger_than_bytes: Some(100), ..Skip::default() };
        assert_eq!(skip.applies(&text, true), by(SkipReason::Hash, ResultCode::WHITELISTED));
        assert_eq!(skip.applies(&FileInfo { sha256: String::new(), ..text.clone() }, true), None);
        assert_eq!(Skip::default().applies(&text, true), None);
    }

    #[test]
    fn a_hash_of_a_kind_that_was_not_taken_is_unknown() {
        let text = file("a.txt", "text/plain", "txt", "T");
        assert_eq!(FileHash("cd".repeat(32)).unknown_of(&text), None);
        for (bytes, kind) in [(16, "MD5"), (20, "SHA-1"), (64, "SHA-512")] {
            assert_eq!(FileHash("cd".repeat(bytes)).unknown_of(&text), Some(kind));
        }
    }

    #[test]
    fn extensions_are_read_as_the_systems_that_open_files_read_them() {
        for (name, extension) in [
            ("a.txt", Some("txt")),
            ("a.TXT. .", Some("txt")),
            ("dir.d/readme", None),
            (".profile", None),
            ("a.", None),
            ("x\\y.exe ", Some("exe")),
        ] {
            assert_eq!(extension_of(name).as_deref(), extension, "{name:?}");
        }
    }
}
