//! The signed result of a batch as a text: a YAML document that ends with a line `...`, which is what is signed, and a second
//! one with the signature and the certificate.
//!
//! **Invariant.** Whatever a client named is written so that it can begin no line and end no text: names of files
//! percent-encoded as the API reference shows them, other texts as JSON strings, which YAML reads.

use std::fmt::Write;

use lazaret_analysis::{AnalysisRecord, BatchRecord};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Standing, batch, file_section};

/// Characters of a name that stand as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The report's beginning, for files to follow. Writing to a string does not fail.
pub fn begin(record: &BatchRecord, fingerprint_sha1: &str) -> String {
    let mut report = String::from("---\n");
    let _ = writeln!(report, "batch_id: {}", record.new.batch_id);
    let _ = writeln!(report, "user_data: {}", text(&record.new.user_data));
    let _ = writeln!(report, "cert_sha1_fingerprint: {}", text(fingerprint_sha1));
    let _ = writeln!(report, "batch_files:\n  batch_count: {}", record.count());
    report.push_str(if record.groups.is_empty() { "  files_in_batch: []\n" } else { "  files_in_batch:\n" });
    report
}

/// One of its files.
pub fn push_file(report: &mut String, record: &AnalysisRecord) {
    let now = Standing::of(record, None);
    let file = file_section(record, now.result);
    let _ = writeln!(report, "    - data_id: {}", record.data_id);
    let _ = writeln!(report, "      display_name: \"{}\"", utf8_percent_encode(&file.display_name, ENCODED));
    let _ = writeln!(report, "      file_size: {}", file.file_size);
    let _ = writeln!(report, "      scan_all_result_i: {}", now.code.code());
    let _ = writeln!(report, "      process_info:");
    let _ = writeln!(report, "        blocked_reason: {}", text(&now.blocked_reasons().join(", ")));
    let _ = writeln!(report, "        result: {}", now.outcome.as_str());
    for (name, digest) in [("md5", &file.md5), ("sha1", &file.sha1), ("sha256", &file.sha256), ("sha512", &file.sha512)]
    {
        let _ = writeln!(report, "      {name}: {}", text(digest));
    }
    let _ = writeln!(report, "      vulnerabilities: []");
}

/// The report's end.
pub fn end(report: &mut String, record: &BatchRecord) {
    let (process, scan) = (batch::process(record), batch::scan(record));
    let _ = writeln!(report, "process_info:");
    let _ = writeln!(report, "  blocked_reason: {}", text(&process.blocked_reason));
    let _ = writeln!(report, "  file_type_skipped_scan: {}", process.file_type_skipped_scan);
    let _ = writeln!(report, "  profile: {}", text(&process.profile));
    let _ = writeln!(report, "  result: {}", process.result);
    let _ = writeln!(report, "  user_agent: {}", text(&process.user_agent));
    let _ = writeln!(report, "  username: {}", text(&process.username));
    let _ = writeln!(report, "scan_results:");
    let _ = writeln!(report, "  scan_all_result_a: {}", text(&scan.scan_all_result_a));
    let _ = writeln!(report, "  scan_all_result_i: {}", scan.scan_all_result_i);
    let _ = writeln!(report, "  start_time: {}", text(&scan.start_time));
    let _ = writeln!(report, "  total_avs: {}", scan.total_avs);
    let _ = writeln!(report, "  total_time: {}", scan.total_time);
    report.push_str("...\n");
}

/// A text as a JSON string. JSON leaves some line ends of Unicode as they are, which YAML would read as such.
fn text(value: &str) -> String {
    let json = serde_json::Value::from(value).to_string();
    let mut quoted = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            other => quoted.push(other),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_in_their_line() {
        for nasty in
            ["", "a: b", "x\n...\n---\nresult: Allowed", "\"'\\", "\u{85}\u{2028}\u{feff}\u{7f}", "# no comment", "\t "]
        {
            let quoted = text(nasty);
            assert!(!quoted.chars().any(|c| c.is_control() || "\u{2028}\u{2029}".contains(c)), "{quoted}");
            assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), nasty);
        }
    }
}
