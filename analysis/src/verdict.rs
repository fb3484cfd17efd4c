//! The one table of result codes: number, text, severity, and whether a file with that result may pass.
//!
//! The numbers and texts are those of the REST API that clients know (`scan_all_result_i`, `scan_all_result_a`). The
//! order of the table *is* the severity: a file's result is the worst of its own and its nested files' results, threats
//! stand above faults and limits, and these above everything that was judged. This module decides nothing else.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What an engine or the pipeline found. Only codes of the table exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResultCode(u16);

/// Whether a result lets a file pass when its rule says nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByDefault {
    Allowed,
    Blocked,
    /// Not a result yet.
    Processing,
}
use ByDefault::{Allowed, Blocked, Processing};

macro_rules! result_codes {
    ($($name:ident = $code:literal, $text:literal, $by_default:ident;)*) => {
        impl ResultCode {
            $(#[doc = concat!($text, " (", $code, ").")] pub const $name: Self = Self($code);)*
        }

        /// Every code, worst first.
        const TABLE: &[(ResultCode, &str, ByDefault)] = &[$((ResultCode::$name, $text, $by_default),)*];
    };
}

result_codes! {
    // Threats, and what a policy treats as one.
    INFECTED = 1, "Infected", Blocked;
    BLACKLISTED = 8, "Blacklisted", Blocked;
    KNOWN_BAD = 38, "Known Bad", Blocked;
    SANDBOX_MALICIOUS = 28, "Malicious Verdict by Sandbox", Blocked;
    SANDBOX_LIKELY_MALICIOUS = 27, "Likely Malicious Verdict by Sandbox", Blocked;
    SUSPICIOUS = 2, "Suspicious", Blocked;
    SANDBOX_SUSPICIOUS = 26, "Suspicious Verdict by Sandbox", Blocked;
    YARA_MATCHED = 21, "Yara Rule Matched", Blocked;
    POTENTIALLY_UNWANTED = 22, "Potentially Unwanted", Blocked;
    SANDBOX_BLOCKED = 29, "Blocked Verdict by Sandbox", Blocked;
    DEEP_CDR_BLOCKED = 30, "Blocked Verdict by Deep CDR", Blocked;
    SBOM_BLOCKED = 34, "Blocked Verdict by SBOM", Blocked;
    COO_BLOCKED = 42, "Blocked Verdict by COO", Blocked;
    POST_ACTION_BLOCKED = 36, "Blocked by Post Action", Blocked;
    POTENTIALLY_VULNERABLE = 18, "Potentially Vulnerable File", Blocked;
    SBOM_VULNERABLE = 32, "Vulnerable Verdict by SBOM", Blocked;
    SENSITIVE_DATA = 20, "Sensitive Data Found", Blocked;
    MISMATCH = 17, "Mismatch", Blocked;
    // Faults and limits: something was not judged.
    SCAN_FAILED = 25, "Scan Failed", Blocked;
    FAILED = 3, "Failed", Blocked;
    EXTRACTION_FAILED = 24, "Extraction Failed", Blocked;
    GLOBAL_TIMEOUT = 31, "Global Timeout Exceeded", Blocked;
    ARCHIVE_TIMEOUT = 16, "Exceeded Archive Timeout", Blocked;
    ARCHIVE_SIZE = 13, "Exceeded Archive Size", Blocked;
    ARCHIVE_FILES = 14, "Exceeded Archive File Number", Blocked;
    ARCHIVE_DEPTH = 9, "Exceeded Archive Depth", Blocked;
    ARCHIVE_RATIO = 60, "Exceeded Archive Expansion Factor", Blocked;
    ENCRYPTED_ARCHIVE = 12, "Encrypted Archive", Blocked;
    PASSWORD_PROTECTED = 15, "Password Protected Document", Blocked;
    UNSUPPORTED_TYPE = 23, "Unsupported File Type", Blocked;
    CANCELLED = 19, "Cancelled", Blocked;
    NOT_SCANNED = 10, "Not Scanned", Blocked;
    SYMLINK_SKIPPED = 1014, "Skip Processing Fast Symlink", Blocked;
    // Not final. It stands above every result that says a file was judged, so that nothing unfinished looks judged.
    IN_PROGRESS = 255, "In Progress", Processing;
    // Judged, without a threat.
    COO_UNKNOWN = 43, "Unknown Verdict by COO", Blocked;
    UNKNOWN = 40, "Unknown", Blocked;
    COO_ALLOWED = 41, "Allowed Verdict by COO", Allowed;
    SBOM_NOT_VULNERABLE = 33, "Non-vulnerable Verdict by SBOM", Allowed;
    KNOWN_GOOD = 39, "Known Good", Allowed;
    WHITELISTED = 7, "Whitelisted", Allowed;
    NO_THREAT = 0, "No Threat Detected", Allowed;
}

impl ResultCode {
    /// The code of this number, if there is one.
    pub fn new(code: u16) -> Option<Self> {
        TABLE.iter().map(|(known, _, _)| *known).find(|known| known.0 == code)
    }

    /// Every code there is, worst first.
    pub fn all() -> impl Iterator<Item = ResultCode> {
        TABLE.iter().map(|(code, _, _)| *code)
    }

    /// The number that clients see.
    pub const fn code(self) -> u16 {
        self.0
    }

    /// The text that clients see.
    pub fn text(self) -> &'static str {
        TABLE.get(self.severity_rank()).map_or("", |(_, text, _)| text)
    }

    /// The place in the order of severity: 0 is the worst.
    pub fn severity_rank(self) -> usize {
        TABLE.iter().position(|(known, _, _)| *known == self).unwrap_or(0)
    }

    /// Whether nothing will change it any more.
    pub fn is_final(self) -> bool {
        self != Self::IN_PROGRESS
    }

    /// Whether it lets a file pass when the rule says nothing else.
    pub fn is_allowed_by_default(self) -> bool {
        TABLE.get(self.severity_rank()).is_some_and(|(_, _, by_default)| *by_default == Allowed)
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Debug for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.0)
    }
}

impl Serialize for ResultCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0)
    }
}

impl<'de> Deserialize<'de> for ResultCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = u16::deserialize(deserializer)?;
        Self::new(code).ok_or_else(|| de::Error::custom(format!("{code} is not a result code")))
    }
}

/// The worse of two results.
pub fn worst(a: ResultCode, b: ResultCode) -> ResultCode {
    if a.severity_rank() <= b.severity_rank() { a } else { b }
}

/// How far a file was taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extraction {
    /// There was nothing to take apart.
    NotAContainer,
    /// Everything came out.
    Complete,
    /// A limit, a password or damage stopped it, with this code.
    Incomplete(ResultCode),
}

/// A file's own result, without its nested files.
///
/// It is the worst of what the engines and the extraction say, as the policy sees it ([`Policy::worst`]). "Not Scanned" of one engine counts only if no engine judged
/// the file, and not for a container that came apart completely, since its members are judged one by one. Without any
/// engine nothing was judged, whatever the extraction says.
pub fn own_result(
    policy: &Policy,
    engine_codes: impl IntoIterator<Item = ResultCode>,
    extraction: Extraction,
) -> ResultCode {
    let mut engines = 0;
    let mut judged: Option<ResultCode> = None;
    for code in engine_codes {
        engines += 1;
        if code != ResultCode::NOT_SCANNED {
            judged = Some(judged.map_or(code, |so_far| policy.worst(so_far, code)));
        }
    }
    let by_engines = match judged {
        Some(code) => code,
        None if engines > 0 && extraction == Extraction::Complete => ResultCode::NO_THREAT,
        None => ResultCode::NOT_SCANNED,
    };
    match extraction {
        Extraction::Incomplete(code) => policy.worst(by_engines, code),
        Extraction::NotAContainer | Extraction::Complete => by_engines,
    }
}

/// Which results let a file pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The codes that do; every other final code blocks.
    pub allowed: Vec<ResultCode>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allowed: ResultCode::all().filter(|code| code.is_allowed_by_default()).collect() }
    }
}

impl Policy {
    /// The place of a code among the results of one file and of what is nested in it: lower ones decide. What blocks comes before what
    /// is allowed, so that nothing that the policy lets pass can hide anything that it doesn't; then severity counts.
    pub fn rank(&self, code: ResultCode) -> (bool, usize) {
        (self.outcome(code) == Outcome::Allowed, code.severity_rank())
    }

    /// Which of two results decides.
    pub fn worst(&self, a: ResultCode, b: ResultCode) -> ResultCode {
        if self.rank(a) <= self.rank(b) { a } else { b }
    }

    /// What `code` means for the file.
    pub fn outcome(&self, code: ResultCode) -> Outcome {
        if !code.is_final() {
            Outcome::Processing
        } else if self.allowed.contains(&code) {
            Outcome::Allowed
        } else {
            Outcome::Blocked
        }
    }
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It may pass.
    Allowed,
    /// It may not.
    Blocked,
    /// Nobody knows yet.
    Processing,
}

impl Outcome {
    /// The text that clients see (`process_info.result`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "Allowed",
            Self::Blocked => "Blocked",
            Self::Processing => "Processing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract, written down a second time: (code, text).
    const CONTRACT: &[(u16, &str)] = &[
        (0, "No Threat Detected"),
        (1, "Infected"),
        (2, "Suspicious"),
        (3, "Failed"),
        (7, "Whitelisted"),
        (8, "Blacklisted"),
        (9, "Exceeded Archive Depth"),
        (10, "Not Scanned"),
        (12, "Encrypted Archive"),
        (13, "Exceeded Archive Size"),
        (14, "Exceeded Archive File Number"),
        (15, "Password Protected Document"),
        (16, "Exceeded Archive Timeout"),
        (17, "Mismatch"),
        (18, "Potentially Vulnerable File"),
        (19, "Cancelled"),
        (20, "Sensitive Data Found"),
        (21, "Yara Rule Matched"),
        (22, "Potentially Unwanted"),
        (23, "Unsupported File Type"),
        (24, "Extraction Failed"),
        (25, "Scan Failed"),
        (26, "Suspicious Verdict by Sandbox"),
        (27, "Likely Malicious Verdict by Sandbox"),
        (28, "Malicious Verdict by Sandbox"),
        (29, "Blocked Verdict by Sandbox"),
        (30, "Blocked Verdict by Deep CDR"),
        (31, "Global Timeout Exceeded"),
        (32, "Vulnerable Verdict by SBOM"),
        (33, "Non-vulnerable Verdict by SBOM"),
        (34, "Blocked Verdict by SBOM"),
        (36, "Blocked by Post Action"),
        (38, "Known Bad"),
        (39, "Known Good"),
        (40, "Unknown"),
        (41, "Allowed Verdict by COO"),
        (42, "Blocked Verdict by COO"),
        (43, "Unknown Verdict by COO"),
        (60, "Exceeded Archive Expansion Factor"),
        (255, "In Progress"),
        (1014, "Skip Processing Fast Symlink"),
    ];

    /// The contract's order of severity, worst first.
    const SEVERITY: &[u16] = &[
        1, 8, 38, 28, 27, 2, 26, 21, 22, 29, 30, 34, 42, 36, 18, 32, 20, 17, 25, 3, 24, 31, 16, 13, 14, 9, 60, 12, 15,
        23, 19, 10, 43, 40, 41, 33, 39, 7, 0,
    ];

    fn code(number: u16) -> ResultCode {
        ResultCode::new(number).unwrap()
    }

    #[test]
    fn codes_and_texts_are_those_of_the_contract() {
        assert_eq!(TABLE.len(), CONTRACT.len());
        for (number, text) in CONTRACT {
            assert_eq!(code(*number).text(), *text);
            assert_eq!(code(*number).code(), *number);
            assert_eq!(serde_json::to_string(&code(*number)).unwrap(), number.to_string());
            assert_eq!(serde_json::from_str::<ResultCode>(&number.to_string()).unwrap(), code(*number));
        }
        for unknown in [4, 5, 6, 11, 35, 37, 44, 256, u16::MAX] {
            assert_eq!(ResultCode::new(unknown), None);
            assert!(serde_json::from_str::<ResultCode>(&unknown.to_string()).is_err());
        }
    }

    #[test]
    fn severity_is_that_of_the_contract() {
        let ours: Vec<u16> = ResultCode::all().map(ResultCode::code).filter(|code| SEVERITY.contains(code)).collect();
        assert_eq!(ours, SEVERITY);
        for (rank, a) in SEVERITY.iter().enumerate() {
            for b in &SEVERITY[rank..] {
                assert_eq!(worst(code(*a), code(*b)), code(*a));
                assert_eq!(worst(code(*b), code(*a)), code(*a));
            }
        }
    }

    #[test]
    fn nothing_unfinished_or_skipped_looks_judged() {
        for judged in [0, 7, 33, 39, 41, 40, 43] {
            assert_eq!(worst(ResultCode::IN_PROGRESS, code(judged)), ResultCode::IN_PROGRESS);
            assert_eq!(worst(ResultCode::SYMLINK_SKIPPED, code(judged)), ResultCode::SYMLINK_SKIPPED);
        }
        assert_eq!(worst(ResultCode::IN_PROGRESS, ResultCode::INFECTED), ResultCode::INFECTED);
    }

    #[test]
    fn default_policy_allows_five_codes() {
        let policy = Policy::default();
        for result in ResultCode::all() {
            let expected = match result.code() {
                0 | 7 | 33 | 39 | 41 => "Allowed",
                255 => "Processing",
                _ => "Blocked",
            };
            assert_eq!(policy.outcome(result).as_str(), expected, "{result:?}");
        }
        let strict = Policy { allowed: vec![ResultCode::WHITELISTED, ResultCode::IN_PROGRESS] };
        assert_eq!(strict.outcome(ResultCode::NO_THREAT), Outcome::Blocked);
        assert_eq!(strict.outcome(ResultCode::WHITELISTED), Outcome::Allowed);
        assert_eq!(strict.outcome(ResultCode::IN_PROGRESS), Outcome::Processing);
    }

    #[test]
    fn own_result_is_the_worst_of_the_engines() {
        use Extraction::{Complete, Incomplete, NotAContainer};
        let policy = Policy::default();
        let own =
            |engines: &[u16], extraction| own_result(&policy, engines.iter().map(|c| code(*c)), extraction).code();
        assert_eq!(own(&[0], NotAContainer), 0);
        assert_eq!(own(&[0, 1, 2], NotAContainer), 1);
        assert_eq!(own(&[0, 25], NotAContainer), 25);
        // "Not Scanned" counts only if no engine judged it.
        assert_eq!(own(&[10, 0], NotAContainer), 0);
        assert_eq!(own(&[10, 10], NotAContainer), 10);
        assert_eq!(own(&[10, 25], NotAContainer), 25);
        // Nor does it for a container that came apart completely.
        assert_eq!(own(&[10], Complete), 0);
        assert_eq!(own(&[10, 1], Complete), 1);
        // No engine loaded.
        assert_eq!(own(&[], NotAContainer), 10);
        assert_eq!(own(&[], Complete), 10);
        assert_eq!(own(&[], Incomplete(ResultCode::ARCHIVE_SIZE)), 13);
        // A limit is a result of its own, and a threat outranks it.
        assert_eq!(own(&[0], Incomplete(ResultCode::ARCHIVE_DEPTH)), 9);
        assert_eq!(own(&[10], Incomplete(ResultCode::ENCRYPTED_ARCHIVE)), 12);
        assert_eq!(own(&[1], Incomplete(ResultCode::ARCHIVE_DEPTH)), 1);
    }

    #[test]
    fn what_is_allowed_hides_nothing_that_is_not() {
        let mut policy = Policy::default();
        // By default severity alone decides.
        for (a, b) in ResultCode::all().flat_map(|a| ResultCode::all().map(move |b| (a, b))) {
            assert_eq!(policy.worst(a, b), worst(a, b));
        }
        policy.allowed.extend([code(17), code(21)]);
        assert_eq!(policy.worst(code(17), code(12)), code(12));
        assert_eq!(policy.worst(code(12), code(21)), code(12));
        assert_eq!(policy.worst(code(17), code(21)), code(21));
        assert_eq!(policy.worst(code(17), code(0)), code(17));
        let own =
            |engines: &[u16], extraction| own_result(&policy, engines.iter().map(|c| code(*c)), extraction).code();
        assert_eq!(own(&[0, 17], Extraction::Incomplete(code(12))), 12);
        assert_eq!(own(&[21, 25], Extraction::NotAContainer), 25);
    }
}
