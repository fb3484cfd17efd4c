//! Whether a file's name tells the truth about it: whether its extension fits its content, and whether the name is made
//! to be misread.
//!
//! Only what is certain is said. An extension that nobody knows fits any content; one of a format that shows itself in the
//! first bytes fits that format alone; one of a text fits whatever is no program, archive or document. Decides nothing:
//! rules do.

use lazaret_analysis::rule::extension_of;
use lazaret_analysis::{FileInfo, Spoofing};

/// Extensions of names that claim one thing, and the usual extensions of the types that it may be. What is a ZIP or an OLE
/// file inside is often recognised as no more than that.
const FAMILIES: &[(&[&str], &[&str])] = &[
    (&["pdf"], &["pdf"]),
    (&["jpg", "jpeg", "jpe", "jfif"], &["jpg"]),
    (&["png"], &["png", "apng"]),
    (&["gif"], &["gif"]),
    (&["bmp", "dib"], &["bmp"]),
    (&["tif", "tiff"], &["tiff"]),
    (&["webp"], &["webp"]),
    (&["docx", "docm", "dotx", "dotm", "xlsx", "xlsm", "xlsb", "xltx", "xltm", "xlam"], OFFICE),
    (&["pptx", "pptm", "potx", "potm", "ppsx", "ppsm", "vsdx", "vsdm"], OFFICE),
    (&["doc", "dot", "xls", "xlt", "ppt", "pps", "pot"], OLD_OFFICE),
    (&["msi", "msp", "mst"], &["msi", "cfb"]),
    (&["odt", "ods", "odp", "odg", "ott", "ots", "otp"], &["odt", "ods", "odp", "odg", "ott", "ots", "otp", "zip"]),
    (&["rtf"], &["rtf"]),
    (&["exe", "dll", "sys", "scr", "cpl", "ocx", "drv", "efi", "mui", "com"], &["exe", "dll", "com", "bin", "txt"]),
    (&["zip"], ZIPS),
    (&["jar", "war", "ear", "apk", "aab", "xpi", "whl", "nupkg", "vsix", "epub", "kmz"], ZIPS),
    (&["7z"], &["7z", "exe"]),
    (&["rar"], &["rar", "exe"]),
    (&["gz", "tgz"], &["gz"]),
    (&["bz2", "tbz2", "tbz"], &["bz2"]),
    (&["xz", "txz"], &["xz"]),
    (&["zst"], &["zst"]),
    (&["cab"], &["cab"]),
    (&["deb", "udeb"], &["deb", "a"]),
    (&["rpm"], &["rpm"]),
    (&["iso"], &["iso"]),
    (&["sqlite", "sqlite3"], &["sqlite"]),
    (&["class"], &["class"]),
    (&["wasm"], &["wasm"]),
    (&["flac"], &["flac"]),
    (&["ttf", "otf", "ttc"], &["ttf", "otf", "ttc"]),
    (&["woff"], &["woff"]),
    (&["woff2"], &["woff2"]),
];

/// Office Open XML; encrypted, it is an OLE file.
const OFFICE: &[&str] = &["docx", "xlsx", "pptx", "vsdx", "zip", "cfb"];
/// OLE files, and what programs write under their names: RTF, HTML, XML, and the newer formats.
const OLD_OFFICE: &[&str] =
    &["doc", "xls", "ppt", "cfb", "rtf", "html", "xml", "txt", "docx", "xlsx", "pptx", "mso", "wps", "wks"];
/// Whatever is a ZIP.
const ZIPS: &[&str] = &[
    "zip", "jar", "war", "ear", "apk", "aab", "xpi", "vsix", "epub", "kmz", "docx", "xlsx", "pptx", "vsdx", "odt",
    "ods", "odp", "odg", "crx", "exe", "ipa", "3mf", "usdz", "appx", "air", "xap", "fbz", "ora", "mxl", "oxps", "zipx",
    "idml",
];

/// Extensions of texts. What is a text can't be told for certain, so they fit whatever is nothing dangerous.
const TEXTS: &[&str] = &[
    "txt", "text", "csv", "tsv", "log", "md", "rst", "ini", "cfg", "conf", "toml", "yaml", "yml", "json", "xml", "css",
    "c", "h", "cpp", "hpp", "rs", "go", "java", "sql", "srt", "vtt", "ics", "vcf",
];
/// Groups of types that no text is of: archives, documents, programs, disk images, PDF.
const NO_TEXT: &str = "ADEIP";

/// How a file's name claims another type than its content has, if it does.
pub fn mismatch(file: &FileInfo) -> Option<String> {
    let named = extension_of(&file.display_name)?;
    // Nothing is known of it, or there is nothing in it.
    if file.file_type.is_empty() || file.extension == "empty" {
        return None;
    }
    let claims = || format!("the name ends in .{named}, the content is {}", shown(file));
    let mut of_family = FAMILIES.iter().filter(|(names, _)| names.contains(&named.as_str())).peekable();
    if of_family.peek().is_some() {
        let fits = of_family.any(|(_, types)| types.contains(&file.extension.as_str()));
        return (!fits).then(claims);
    }
    let binary = file.type_category.iter().any(|group| NO_TEXT.contains(group.as_str()));
    let is_text = file.file_type.starts_with("text/") || file.file_type.ends_with("+xml");
    (TEXTS.contains(&named.as_str()) && binary && !is_text).then(claims)
}

fn shown(file: &FileInfo) -> String {
    if file.file_type_description.is_empty() {
        file.file_type.clone()
    } else {
        format!("{} ({})", file.file_type_description, file.file_type)
    }
}

/// Characters that change the direction of writing, so that what stands behind them is shown elsewhere.
const DIRECTION: &[char] = &['\u{202a}', '\u{202b}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}'];
/// So many spaces in a row before the last extension push it out of sight. People write two by mistake.
const PADDING_SPACES_MIN: usize = 5;
/// Extensions that run when they are opened.
const RUNS: &[&str] = &[
    "exe",
    "scr",
    "com",
    "pif",
    "bat",
    "cmd",
    "vbs",
    "vbe",
    "js",
    "jse",
    "wsf",
    "wsh",
    "hta",
    "lnk",
    "ps1",
    "msi",
    "cpl",
    "jar",
    "dll",
    "reg",
    "url",
    "iso",
    "img",
    "chm",
    "application",
    "appref-ms",
    "msc",
    "sh",
];
/// Extensions of what people open without a thought.
const HARMLESS: &[&str] = &[
    "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "odt", "ods", "rtf", "txt", "csv", "jpg", "jpeg", "png", "gif",
    "bmp", "tif", "tiff", "webp", "heic", "mp3", "mp4", "avi", "mov", "mkv", "wav", "zip", "rar", "7z", "html", "htm",
    "eml", "msg", "xml",
];

/// How a name hides what the file is, if it does.
pub fn spoofing(name: &str) -> Option<Spoofing> {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let say = |overview: &str, explanation: String| Some(Spoofing { overview: overview.to_owned(), explanation });
    if let Some(mark) = base.chars().find(|c| DIRECTION.contains(c)) {
        let code = u32::from(mark);
        return say(
            "Direction of writing changed",
            format!("the name holds U+{code:04X}, which has what follows it shown in another order"),
        );
    }
    let trimmed = base.trim_end_matches([' ', '.']);
    let (stem, last) = trimmed.rsplit_once('.')?;
    let blank = |c: char| c.is_whitespace() || matches!(c, '\u{200b}' | '\u{2800}' | '\u{3164}');
    let spaces = stem.chars().rev().take_while(|c| blank(*c)).count() + last.chars().take_while(|c| blank(*c)).count();
    if spaces >= PADDING_SPACES_MIN {
        return say("Extension behind spaces", format!("{spaces} spaces stand before the extension .{}", last.trim()));
    }
    let last = last.trim().to_lowercase();
    let inner = stem.trim_end().rsplit_once('.')?.1.to_lowercase();
    if RUNS.contains(&last.as_str()) && HARMLESS.contains(&inner.as_str()) {
        return say(
            "Double extension",
            format!("the name reads like .{inner}, but it ends in .{last}, which runs when it is opened"),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, mime: &str, extension: &str, group: &str) -> FileInfo {
        FileInfo {
            display_name: name.into(),
            file_type: mime.into(),
            extension: extension.into(),
            type_category: vec![group.into()],
            ..FileInfo::default()
        }
    }

    const PE: (&str, &str, &str) = ("application/vnd.microsoft.portable-executable", "exe", "E");
    const TEXT: (&str, &str, &str) = ("text/plain", "txt", "T");
    const ZIP: (&str, &str, &str) = ("application/zip", "zip", "A");
    const PDF: (&str, &str, &str) = ("application/pdf", "pdf", "P");
    const UNKNOWN: (&str, &str, &str) = ("application/octet-stream", "bin", "O");

    #[test]
    fn names_that_claim_another_type_are_told_from_those_that_do_not() {
        let lies = [
            ("invoice.pdf", PE),
            ("holiday.JPG", PE),
            ("notes.txt", PE),
            ("a.pdf", TEXT),
            ("a.png", UNKNOWN),
            ("a.docx", PE),
            ("readme.md", ZIP),
            ("x.exe", PDF),
            ("a.pdf. ", ZIP),
            ("page.json", PDF),
        ];
        for (name, (mime, extension, group)) in lies {
            let said = mismatch(&file(name, mime, extension, group));
            assert!(said.is_some_and(|said| said.contains(mime)), "{name} {mime}");
        }
        let truths = [
            ("setup.exe", PE),
            ("lib.dll", PE),
            ("notes.txt", TEXT),
            ("a.whl", ZIP),
            ("a.docx", ZIP),
            ("a.py", TEXT),
            ("a.bin", PE),
            ("a", PE),
            ("notes.txt", UNKNOWN),
            ("a.pdf", PDF),
            ("data.json", TEXT),
            ("a.jar", ("application/java-archive", "jar", "A")),
            ("a.pdf", ("application/x-empty", "empty", "O")),
            ("old.doc", ("application/rtf", "rtf", "D")),
            ("a.pdf", ("", "", "")),
            ("feed.xml", ("application/rss+xml", "rss", "D")),
        ];
        for (name, (mime, extension, group)) in truths {
            assert_eq!(mismatch(&file(name, mime, extension, group)), None, "{name} {mime}");
        }
    }

    #[test]
    fn names_made_to_be_misread_are_told() {
        for (name, part) in [
            ("invoice\u{202e}fdp.exe", "U+202E"),
            ("in/voice.pdf.exe", ".exe"),
            ("photo.jpg          .scr", "spaces"),
            ("photo.jpg.      scr", "spaces"),
            ("a.DOCX.JS", ".js"),
            ("a.pdf.lnk. .", ".lnk"),
        ] {
            assert!(spoofing(name).is_some_and(|found| found.explanation.contains(part)), "{name}");
        }
        for name in
            ["invoice.pdf", "setup.exe", "a.tar.gz", "jquery.min.js", "my file .txt", "v1.2.exe", "שלום.pdf", ""]
        {
            assert_eq!(spoofing(name), None, "{name}");
        }
    }
}
