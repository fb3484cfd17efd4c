//! Rules (clients say workflows): how a submission is treated, and who may ask for that.
//!
//! A rule set is read from YAML as a whole or refused with one line that says what is wrong in which line. An analysis keeps
//! a snapshot of its rule, so that changing the rules never changes what is running; for those snapshots a key that was
//! once known stays known. Nothing here reads files.

mod file_types;
mod handle;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

pub use self::file_types::{
    Asked, FileHash, FileTypes, LIST_MAX, Skip, SkipReason, Skipped, TypePattern, extension_of,
};
pub use self::handle::Rules;
use crate::password::PasswordList;
use crate::verdict::{Outcome, Policy, ResultCode};

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// Most rules in a set: more is a generated file gone wrong.
pub const RULES_MAX: usize = 1000;

/// What one submission may make the station do. Counted over the whole tree of nested files, on produced bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How many containers deep a file may lie. Default 20.
    pub depth: u32,
    /// How many nested files may come out. Default 1,000,000.
    pub files: u64,
    /// How many bytes may come out. Default 64 GiB.
    pub produced_bytes: u64,
    /// How many times a container's own bytes may come out of it. Default 1000.
    pub ratio: u64,
    /// So many bytes may come out before the ratio counts. Default 64 MiB.
    pub ratio_free_bytes: u64,
    /// How many seconds taking one container apart may take. Default 600.
    pub archive_seconds: u64,
    /// How long a single nested file may be. Default: as long as `produced_bytes` allows.
    pub file_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 20,
            files: 1_000_000,
            produced_bytes: 64 * 1024 * MIB,
            ratio: 1000,
            ratio_free_bytes: 64 * MIB,
            archive_seconds: 600,
            file_bytes: None,
        }
    }
}

/// How a submission is treated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What clients ask for in the `rule` header.
    pub name: String,
    /// What one submission may make the station do.
    #[serde(default)]
    pub limits: Limits,
    /// Names of the engines that must judge each file; empty for all that are loaded.
    #[serde(default)]
    pub engines: Vec<String>,
    /// The results that let a file pass. Default: those of [`Policy::default`].
    #[serde(default = "default_allowed_codes")]
    pub allowed_codes: Vec<ResultCode>,
    /// The longest body that is taken. Default 1 TiB, the longest blob.
    #[serde(default = "default_max_file_size_bytes")]
    pub max_file_size_bytes: u64,
    /// Passwords that are tried on whatever is encrypted, after the submitter's. Sealed with those of the submission: a snapshot
    /// has none.
    #[serde(default, skip_serializing)]
    pub passwords: PasswordList,
    /// The roles that may use the rule; empty for all.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The user agents that may use the rule, compared as a whole; empty for all.
    #[serde(default)]
    pub user_agents: Vec<String>,
    /// How many seconds an analysis may take from its start. Default: no such limit.
    #[serde(default)]
    pub global_timeout_seconds: Option<u64>,
    /// The result of a container over the ratio: 13, which every client knows, or 60, which says it exactly.
    #[serde(default = "default_ratio_code")]
    pub ratio_code: ResultCode,
    /// Which types of files may pass.
    #[serde(default)]
    pub file_types: FileTypes,
    /// Files with one of these digests are Blacklisted (8), nested ones too.
    #[serde(default)]
    pub blocked_hashes: Vec<FileHash>,
    /// What is not scanned.
    #[serde(default)]
    pub skip: Skip,
    /// Which of two waiting submissions is scanned first: the one of the higher priority, 0 to 9. Default 5.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Whether a verdict may be taken from an earlier scan of the same content by the same engines. Default true.
    #[serde(default = "default_true")]
    pub verdict_cache: bool,
    /// Whether the files in a large container are shared out to all workers. Default false.
    #[serde(default)]
    pub load_sharing: bool,
}

fn default_allowed_codes() -> Vec<ResultCode> {
    Policy::default().allowed
}

fn default_max_file_size_bytes() -> u64 {
    1 << 40
}

fn default_ratio_code() -> ResultCode {
    ResultCode::ARCHIVE_SIZE
}

/// The highest priority of a rule.
pub const PRIORITY_MAX: u8 = 9;

/// The priority of a rule that says none.
pub const PRIORITY_DEFAULT: u8 = 5;

fn default_priority() -> u8 {
    PRIORITY_DEFAULT
}

fn default_true() -> bool {
    true
}

impl Rule {
    /// A rule of this name that says nothing but the defaults.
    pub fn with_defaults(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            limits: Limits::default(),
            engines: Vec::new(),
            allowed_codes: default_allowed_codes(),
            max_file_size_bytes: default_max_file_size_bytes(),
            passwords: PasswordList::default(),
            roles: Vec::new(),
            user_agents: Vec::new(),
            global_timeout_seconds: None,
            ratio_code: default_ratio_code(),
            file_types: FileTypes::default(),
            blocked_hashes: Vec::new(),
            skip: Skip::default(),
            priority: default_priority(),
            verdict_cache: true,
            load_sharing: false,
        }
    }

    /// Whether what becomes of a file depends on its digests.
    pub fn needs_digests(&self) -> bool {
        !self.blocked_hashes.is_empty() || !self.skip.hashes.is_empty()
    }

    /// The results that let a file pass.
    pub fn policy(&self) -> Policy {
        Policy { allowed: self.allowed_codes.clone() }
    }

    /// What `code` means for a file under this rule.
    pub fn outcome(&self, code: ResultCode) -> Outcome {
        self.policy().outcome(code)
    }

    /// Whether a caller of this role and user agent may use the rule.
    pub fn admits(&self, role: &str, user_agent: &str) -> bool {
        let fits = |list: &[String], value: &str| list.is_empty() || list.iter().any(|entry| entry == value);
        fits(&self.roles, role) && fits(&self.user_agents, user_agent)
    }

    /// What is wrong with it, if anything.
    fn check(&self) -> Result<(), String> {
        let positive = [
            ("limits.depth", u64::from(self.limits.depth)),
            ("limits.files", self.limits.files),
            ("limits.produced_bytes", self.limits.produced_bytes),
            ("limits.ratio", self.limits.ratio),
            ("limits.archive_seconds", self.limits.archive_seconds),
            ("limits.file_bytes", self.limits.file_bytes.unwrap_or(1)),
            ("max_file_size_bytes", self.max_file_size_bytes),
            ("global_timeout_seconds", self.global_timeout_seconds.unwrap_or(1)),
        ];
        if self.name.trim().is_empty() {
            return Err("a rule's name is empty".to_owned());
        }
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("rule {:?}: {key} must be at least 1", self.name));
        }
        if ![ResultCode::ARCHIVE_SIZE, ResultCode::ARCHIVE_RATIO].contains(&self.ratio_code) {
            return Err(format!("rule {:?}: ratio_code must be 13 or 60", self.name));
        }
        self.passwords.check().map_err(|reason| format!("rule {:?}: passwords: {reason}", self.name))?;
        if let Some(code) = self.allowed_codes.iter().find(|code| !code.is_final()) {
            return Err(format!("rule {:?}: allowed_codes: {code:?} is no final result", self.name));
        }
        if ![ResultCode::NOT_SCANNED, ResultCode::WHITELISTED].contains(&self.skip.code) {
            return Err(format!("rule {:?}: skip.code must be 10 or 7", self.name));
        }
        if self.priority > PRIORITY_MAX {
            return Err(format!("rule {:?}: priority must be 0 to {PRIORITY_MAX}", self.name));
        }
        let lists = [
            ("file_types.blocked", self.file_types.blocked.len()),
            ("file_types.allowed", self.file_types.allowed.len()),
            ("blocked_hashes", self.blocked_hashes.len()),
            ("skip.hashes", self.skip.hashes.len()),
            ("skip.types", self.skip.types.len()),
        ];
        if let Some((key, length)) = lists.iter().find(|(_, length)| *length > LIST_MAX) {
            return Err(format!("rule {:?}: {key} has {length} entries, more than {LIST_MAX}", self.name));
        }
        Ok(())
    }
}

/// The rules of a station, in the order in which they are offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

/// A text that is not a rule set, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rules, line {line}: {reason}")]
pub struct RuleError {
    /// The line, from 1; 1 if the text has no such place.
    pub line: u64,
    /// What is wrong there.
    pub reason: String,
}

/// Why a caller gets no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// There is no rule of that name.
    #[error("no rule is named {0:?}")]
    Unknown(String),
    /// It is not for this role or user agent.
    #[error("rule {0:?} may not be used by this role or user agent")]
    NotAdmitted(String),
    /// None was named, and none is for this role and user agent.
    #[error("no rule may be used by this role and user agent")]
    NoneFits,
}

/// The file's shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    rules: Vec<serde_saphyr::Spanned<Rule>>,
}

impl RuleSet {
    /// The rules of a YAML text: a list under the key `rules`, whose first one is the default.
    pub fn from_yaml(text: &str) -> Result<Self, RuleError> {
        let file: RuleFile = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line().max(1));
            // The library appends the place, which our own error says already.
            let said = error.without_snippet().to_string();
            let reason = said.rsplit_once(" at line ").map_or(said.as_str(), |(reason, _)| reason);
            RuleError { line, reason: in_words(reason, key_on(text, line)) }
        })?;
        if file.rules.is_empty() || file.rules.len() > RULES_MAX {
            let reason = format!("a rule set has 1 to {RULES_MAX} rules, this one has {}", file.rules.len());
            return Err(RuleError { line: 1, reason });
        }
        let mut names = HashSet::new();
        let mut rules = Vec::with_capacity(file.rules.len());
        for spanned in file.rules {
            let line = spanned.referenced.line().max(1);
            let rule = spanned.value;
            rule.check().map_err(|reason| RuleError { line, reason })?;
            if !names.insert(rule.name.clone()) {
                return Err(RuleError { line, reason: format!("a second rule is named {:?}", rule.name) });
            }
            rules.push(rule);
        }
        Ok(Self { rules })
    }

    /// One rule named "default", for everybody, with the defaults.
    pub fn builtin() -> Self {
        Self { rules: vec![Rule::with_defaults("default")] }
    }

    /// The rule that a caller gets: the one it names, else the first that admits it. There is no fallback for a name.
    pub fn select(&self, name: Option<&str>, role: &str, user_agent: &str) -> Result<&Rule, SelectError> {
        let Some(name) = name else {
            return self.rules.iter().find(|rule| rule.admits(role, user_agent)).ok_or(SelectError::NoneFits);
        };
        match self.rules.iter().find(|rule| rule.name == name) {
            None => Err(SelectError::Unknown(name.to_owned())),
            Some(rule) if rule.admits(role, user_agent) => Ok(rule),
            Some(_) => Err(SelectError::NotAdmitted(name.to_owned())),
        }
    }

    /// All rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// The key that a line sets. Of what it sets it to nothing is told: that may be a password.
fn key_on(text: &str, line: u64) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    let key = line.trim_start_matches([' ', '-']).split_once(':')?.0.trim_end();
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_key.then_some(key)
}

/// What the YAML library says, in words of people who write rules, and of which key it speaks.
fn in_words(said: &str, key: Option<&str>) -> String {
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = said.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    let said = match said {
        "expected mapping start" => "it must have keys with values, indented below it",
        "expected sequence start" => "it must be a list: [a, b], or lines that begin with -",
        "expected string scalar" => "it must be a text",
        "invalid boolean" => "it must be true or false",
        "unexpected end of input" => "the file is empty",
        said if said.starts_with("invalid u") => "it must be a whole number, not negative and not too large",
        said => said,
    };
    match key {
        Some(key) if !said.contains(key) => format!("{key}: {said}"),
        _ => said.to_owned(),
    }
}

impl Default for RuleSet {
    fn default() -> Self {
        Self::builtin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
rules:
  - name: default
  - name: strict
    limits:
      depth: 3
      produced_bytes: 1000000
      file_bytes: 10
    engines: [builtin]
    allowed_codes: [0]
    max_file_size_bytes: 1048576
    passwords: [infected, "virus test"]
    roles: [administrator]
    user_agents: ["curl/8"]
    global_timeout_seconds: 30
    ratio_code: 60
    file_types:
      blocked: [group:E, .js, application/x-msi]
      allowed: ["image/*"]
      mismatch: true
      spoofing: true
    blocked_hashes: [44D88612FEA8A8F36DE82E1278ABB02F]
    skip:
      hashes: [3395856ce81f2b7382dee72602f798b642f14140]
      types: [text/plain]
      larger_than_bytes: 1000
      code: 7
    priority: 9
    verdict_cache: false
    load_sharing: true
"#;

    #[test]
    fn reads_rules_with_defaults() {
        let set = RuleSet::from_yaml(TWO).unwrap();
        assert_eq!(set.rules()[0], RuleSet::builtin().rules()[0]);
        let strict = &set.rules()[1];
        assert_eq!(
            strict.limits,
            Limits { depth: 3, produced_bytes: 1_000_000, file_bytes: Some(10), ..Limits::default() }
        );
        assert_eq!(strict.outcome(ResultCode::NO_THREAT), Outcome::Allowed);
        assert_eq!(strict.outcome(ResultCode::WHITELISTED), Outcome::Blocked);
        assert_eq!(strict.ratio_code, ResultCode::ARCHIVE_RATIO);
        assert_eq!(strict.global_timeout_seconds, Some(30));
        assert_eq!(strict.file_types.blocked.len(), 3);
        assert!(strict.file_types.mismatch && strict.file_types.spoofing && strict.load_sharing);
        assert!(!strict.verdict_cache && strict.needs_digests());
        assert_eq!((strict.skip.code.code(), strict.skip.larger_than_bytes, strict.priority), (7, Some(1000), 9));
    }

    #[test]
    fn a_snapshot_of_before_the_later_keys_is_read_with_their_defaults() {
        let json = r#"{"name":"x","limits":{"depth":20,"files":1000000,"produced_bytes":68719476736,"ratio":1000,
            "ratio_free_bytes":67108864,"archive_seconds":600,"file_bytes":null},"engines":[],"allowed_codes":[41,33,39,7,0],
            "max_file_size_bytes":1099511627776,"roles":[],"user_agents":[],"global_timeout_seconds":null,"ratio_code":13}"#;
        assert_eq!(serde_json::from_str::<Rule>(json).unwrap(), Rule::with_defaults("x"));
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let rule = Rule::with_defaults("x");
        assert_eq!(rule.limits.depth, 20);
        assert_eq!(rule.limits.files, 1_000_000);
        assert_eq!(rule.limits.produced_bytes, 68_719_476_736);
        assert_eq!((rule.limits.ratio, rule.limits.ratio_free_bytes), (1000, 67_108_864));
        assert_eq!((rule.limits.archive_seconds, rule.limits.file_bytes), (600, None));
        assert_eq!((rule.ratio_code.code(), rule.global_timeout_seconds), (13, None));
    }

    #[test]
    fn a_snapshot_survives_json() {
        let set = RuleSet::from_yaml(TWO).unwrap();
        for rule in set.rules() {
            let json = serde_json::to_string(rule).unwrap();
            assert!(!json.contains("infected"), "passwords are kept sealed or not at all: {json}");
            let without_passwords = Rule { passwords: PasswordList::default(), ..rule.clone() };
            assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), without_passwords);
        }
    }

    #[test]
    fn selects_by_name_role_and_user_agent() {
        let set = RuleSet::from_yaml(TWO).unwrap();
        let name = |result: Result<&Rule, SelectError>| result.map(|rule| rule.name.clone());
        assert_eq!(name(set.select(None, "submitter", "")), Ok("default".to_owned()));
        assert_eq!(name(set.select(Some("strict"), "administrator", "curl/8")), Ok("strict".to_owned()));
        let refused = Err(SelectError::NotAdmitted("strict".to_owned()));
        assert_eq!(name(set.select(Some("strict"), "submitter", "curl/8")), refused);
        assert_eq!(name(set.select(Some("strict"), "administrator", "curl/7")), refused);
        assert_eq!(name(set.select(Some("Default"), "x", "")), Err(SelectError::Unknown("Default".to_owned())));
        let only_admins =
            RuleSet::from_yaml("rules: [{name: a, roles: [administrator]}, {name: b, roles: [x]}]").unwrap();
        assert_eq!(name(only_admins.select(None, "x", "")), Ok("b".to_owned()));
        assert_eq!(name(only_admins.select(None, "submitter", "")), Err(SelectError::NoneFits));
    }

    #[test]
    fn errors_are_one_line_and_name_the_line() {
        let cases = [
            ("rules:\n  - name: a\n    limit: 3\n", 3, "limit"),
            ("rules:\n  - name: a\n    limits:\n      deep: 3\n", 4, "deep"),
            ("rules:\n  - name: a\n\n    allowed_codes: [0, 4]\n", 4, "4 is not a result code"),
            ("rules:\n  - name: a\n    allowed_codes: [0, 255]\n", 2, "no final result"),
            ("rules:\n  - name: a\n  - name: b\n    ratio_code: 14\n", 3, "ratio_code must be 13 or 60"),
            ("rules:\n  - name: a\n  - name: a\n", 3, "second rule"),
            ("rules:\n  - name: \"\"\n", 2, "name is empty"),
            ("rules:\n  - name: a\n    limits: {depth: 0}\n", 2, "limits.depth must be at least 1"),
            ("rules:\n  - name: a\n    limits: {depth: -1}\n", 3, ""),
            ("rules:\n  - {name: a}\n  - [\n", 3, "unclosed"),
            ("rules:\n  - name: a\n    skip:\n      types: [\"a b\"]\n", 4, "is no file type"),
            ("rules:\n  - name: a\n    blocked_hashes:\n      - 12\n", 4, "is no MD5"),
            ("rules:\n  - name: a\n    file_types: {block: []}\n", 3, "block"),
            ("rules:\n  - name: a\n    priority: 10\n", 2, "priority must be 0 to 9"),
            ("rules:\n  - name: a\n    skip: {code: 0}\n", 2, "skip.code must be 10 or 7"),
            ("rules:\n  - limits: {}\n", 2, "name"),
            ("rules: []\n", 1, "has 0"),
            ("", 1, ""),
            ("ruls: []\n", 1, "ruls"),
        ];
        for (text, line, part) in cases {
            let error = RuleSet::from_yaml(text).unwrap_err();
            println!("{error}");
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.reason.contains(part), "{text:?}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key_and_never_its_value() {
        for (lines, line, told) in [
            ("    limits:\n      depth: -1", 4, "depth: it must be a whole number"),
            ("    limits:\n      depth: 99999999999", 4, "depth: it must be a whole number"),
            ("    limits: 3", 3, "limits: it must have keys with values"),
            ("    roles: administrator", 3, "roles: it must be a list"),
            ("    verdict_cache: maybe", 3, "verdict_cache: it must be true or false"),
            ("    name: y", 3, "duplicate mapping key: name"),
            ("    passwords: [[secret]]", 3, "passwords: it must be a text"),
            ("    limit: 3", 3, "unknown field `limit`"),
        ] {
            let error = RuleSet::from_yaml(&format!("rules:\n  - name: x\n{lines}\n")).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.reason.starts_with(told) && !error.reason.contains("secret"), "{error}");
            assert!(!error.reason.contains("DuplicateKeyPolicy"), "{error}");
        }
        assert_eq!(RuleSet::from_yaml("").unwrap_err().reason, "the file is empty");
    }
}
