//! Verdicts that are kept for the next file of the same content.
//!
//! A verdict is found again by a [`VerdictKey`], which says everything that it depends on: content, name, engines with their
//! settings and the versions of their databases, what of the rule matters, which digests were taken, and the build that took the file apart. So
//! nothing is ever flushed: an engine's update asks for other keys, and the entries of before grow old.
//!
//! A leaf's entry is its result. A container's entry names besides the container under which the records of its members
//! lie, and the totals of its tree, since the limits of a rule are no part of the key: whoever finds it checks them.
//!
//! Invariant: only what another scan would find again is kept. No limit that was hit, nothing that failed or ran out of time,
//! nothing that needed a password.

use serde::{Deserialize, Serialize};

use crate::analysis::{EngineResult, FileResult};
use crate::id::DataId;
use crate::rule::Rule;
use crate::verdict::ResultCode;

/// Most keys that one call looks up or keeps.
pub const VERDICT_BATCH_MAX: usize = 500;

/// The rule's keys that decide nothing about a file that was judged completely: who may use it, how it is scheduled, and
/// limits, which are checked against the totals of an entry. All others count, those to come included.
const RULE_KEYS_WITHOUT_WEIGHT: [&str; 9] = [
    "name",
    "limits",
    "max_file_size_bytes",
    "roles",
    "user_agents",
    "global_timeout_seconds",
    "priority",
    "verdict_cache",
    "load_sharing",
];

/// What a verdict depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerdictKey(pub [u8; 32]);

impl std::fmt::Debug for VerdictKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerdictKey({})", hex::encode(self.0))
    }
}

/// An engine, as far as verdicts depend on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EngineVersion {
    /// Its stable id and its name.
    pub id: String,
    /// What rules call it.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The version of what it searches for, and when that was made.
    pub database: (String, u64),
    /// What else its answers depend on: its settings, and whatever no version tells.
    pub settings: String,
}

/// What is the same for all files of a submission.
#[derive(Debug, Clone)]
pub struct VerdictScope {
    hasher: blake3::Hasher,
    engines: Vec<EngineVersion>,
}

impl VerdictScope {
    /// The scope of a rule and of the engines that are loaded. `attributes` says what else results differ by, the build of the program
    /// for one. None if the rule wants no verdicts of earlier scans, or an engine does not tell its database's version.
    pub fn new(rule: &Rule, engines: &[EngineVersion], attributes: &str) -> Option<Self> {
        if !rule.verdict_cache {
            return None;
        }
        let mut asked: Vec<&EngineVersion> =
            engines.iter().filter(|engine| rule.engines.is_empty() || rule.engines.contains(&engine.name)).collect();
        // Whoever does not say what it searches for may search for more tomorrow.
        if asked.iter().any(|engine| engine.database.0.is_empty()) {
            return None;
        }
        asked.sort();
        // A rule always is an object; were it not, nothing would be shared.
        let serde_json::Value::Object(mut weighty) = serde_json::to_value(rule).ok()? else { return None };
        weighty.retain(|key, _| !RULE_KEYS_WITHOUT_WEIGHT.contains(&key.as_str()));
        // A container's own ratio was judged by these two, which totals can't tell.
        let ratio = (rule.limits.ratio, rule.limits.ratio_free_bytes);
        let mut hasher = blake3::Hasher::new_derive_key("lazaret 2026 verdict key v2");
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(attributes.as_bytes());
        field(serde_json::Value::Object(weighty).to_string().as_bytes());
        field(&ratio.0.to_le_bytes());
        field(&ratio.1.to_le_bytes());
        for EngineVersion { id, name, version, database, settings } in &asked {
            for text in [id, name, version, &database.0, settings] {
                field(text.as_bytes());
            }
            field(&database.1.to_le_bytes());
        }
        Some(Self { hasher, engines: asked.into_iter().cloned().collect() })
    }

    /// Whether what was judged by an engine of this version may be kept: the key says so of it.
    pub fn names(&self, version: &EngineVersion) -> bool {
        self.engines.contains(version)
    }

    /// The key of a file: its content's BLAKE3, its name without the folders before it, and which of its digests are taken
    /// ([`FileInfo::digests_taken`]). The whole name counts, since engines and rules may judge it, and members of some
    /// containers are named after them.
    ///
    /// [`FileInfo::digests_taken`]: crate::FileInfo::digests_taken
    pub fn key(&self, content: &[u8; 32], name: &str, digests: [bool; 4]) -> VerdictKey {
        let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
        let mut hasher = self.hasher.clone();
        hasher.update(&digests.map(u8::from)).update(content).update(name.as_bytes());
        VerdictKey(*hasher.finalize().as_bytes())
    }
}

/// A verdict that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVerdict {
    /// What was found. Its `container.worst_child` is one of the members under `tree.source`.
    pub result: FileResult,
    /// Present if it is a container.
    pub tree: Option<KeptTree>,
}

/// What is nested in a container whose verdict was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTree {
    /// The analysis or nested file under which the members are recorded.
    pub source: DataId,
    /// What its tree took.
    pub totals: TreeTotals,
}

/// What a container's tree took, itself not counted, as limits count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeTotals {
    /// Files that came out.
    pub files: u64,
    /// Bytes that came out.
    pub bytes: u64,
    /// Containers, one inside the other, that were taken apart: 1 if none of the members is one.
    pub depth: u32,
    /// The longest file that came out.
    pub largest_bytes: u64,
}

impl TreeTotals {
    /// Adds what other members of the same container took.
    pub fn merge(&mut self, other: &Self) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.depth = self.depth.max(other.depth);
        self.largest_bytes = self.largest_bytes.max(other.largest_bytes);
    }

    /// Adds a member: its length, and its own totals if it was taken apart.
    pub fn add(&mut self, length: u64, within: Option<&Self>) {
        let none = Self::default();
        let within = within.unwrap_or(&none);
        self.files = self.files.saturating_add(1).saturating_add(within.files);
        self.bytes = self.bytes.saturating_add(length).saturating_add(within.bytes);
        self.depth = self.depth.max(within.depth.saturating_add(1));
        self.largest_bytes = self.largest_bytes.max(length).max(within.largest_bytes);
    }
}

/// Whether a file's result may be kept, as far as the file itself goes: everything was judged, and another scan would
/// judge it the same.
pub fn may_be_kept(result: &FileResult) -> bool {
    let container = result.container.as_ref();
    is_judged(result.own)
        && result.engines.iter().all(|engine: &EngineResult| is_judged(engine.code) || engine.code == NOT_FOR_IT)
        && container.is_none_or(|container| container.reason.is_none_or(is_judged) && !container.encrypted)
}

/// What an engine says of a sample that is not for it. Others judged the file, or it would not be judged.
const NOT_FOR_IT: ResultCode = ResultCode::NOT_SCANNED;

/// Whether a code is a threat or a judgement, rather than a fault, a limit, a time that ran out or a want of a password.
fn is_judged(code: ResultCode) -> bool {
    let rank = code.severity_rank();
    rank < ResultCode::SCAN_FAILED.severity_rank() || rank > ResultCode::IN_PROGRESS.severity_rank()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::ContainerResult;
    use crate::conformance::sample_result;

    fn engine(name: &str, version: &str, database: &str) -> EngineVersion {
        EngineVersion {
            id: name.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            database: (database.to_owned(), 1),
            settings: "none".to_owned(),
        }
    }

    /// All digests.
    const ALL: [bool; 4] = [true; 4];

    fn key(rule: &Rule, engines: &[EngineVersion]) -> VerdictKey {
        VerdictScope::new(rule, engines, "this build").unwrap().key(&[1; 32], "a/b.zip", ALL)
    }

    #[test]
    fn the_key_tells_apart_what_matters_and_nothing_else() {
        let rule = Rule::with_defaults("one");
        let (a, b) = (engine("a", "1", "1"), engine("b", "1", "1"));
        let first = key(&rule, &[a.clone(), b.clone()]);
        assert_eq!(first, key(&rule, &[b.clone(), a.clone()]), "the order of engines");
        let mut other = Rule { roles: vec!["x".to_owned()], priority: 9, ..Rule::with_defaults("two") };
        (other.limits.depth, other.limits.files, other.global_timeout_seconds) = (3, 5, Some(1));
        assert_eq!(first, key(&other, &[a.clone(), b.clone()]), "who and how much");
        let scope = VerdictScope::new(&rule, &[a.clone(), b.clone()], "this build").unwrap();
        assert_eq!(first, scope.key(&[1; 32], "elsewhere/b.zip", ALL), "the folder");
        assert!(scope.names(&a) && !scope.names(&engine("a", "1", "2")) && !scope.names(&engine("c", "1", "1")));

        let ratio = Rule { limits: crate::Limits { ratio: 7, ..rule.limits.clone() }, ..rule.clone() };
        let allowed = Rule { allowed_codes: vec![ResultCode::NO_THREAT], ..rule.clone() };
        let only_a = Rule { engines: vec!["a".to_owned()], ..rule.clone() };
        let engines = [a.clone(), b.clone()];
        let others = [
            key(&ratio, &engines),
            key(&allowed, &engines),
            key(&only_a, &engines),
            key(&rule, &[a.clone(), engine("b", "2", "1")]),
            key(&rule, &[a.clone(), engine("b", "1", "2")]),
            key(&rule, &[a.clone(), EngineVersion { settings: "some".to_owned(), ..b.clone() }]),
            key(&rule, std::slice::from_ref(&a)),
            VerdictScope::new(&rule, &engines, "the next build").unwrap().key(&[1; 32], "b.zip", ALL),
            scope.key(&[1; 32], "b.zip", [false, true, true, true]),
            scope.key(&[2; 32], "b.zip", ALL),
            scope.key(&[1; 32], "b.exe", ALL),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(first, *other, "{at}");
            assert!(!others[..at].contains(other), "{at}");
        }
        // An engine that the rule doesn't ask is none of its business.
        assert_eq!(key(&only_a, &engines), key(&only_a, &[a, engine("b", "9", "9")]));
        assert!(VerdictScope::new(&Rule { verdict_cache: false, ..rule }, &engines, "this build").is_none());
    }

    #[test]
    fn only_what_was_judged_is_kept() {
        let result = |code| sample_result(code, "a");
        for code in [ResultCode::NO_THREAT, ResultCode::INFECTED, ResultCode::SUSPICIOUS, ResultCode::YARA_MATCHED] {
            assert!(may_be_kept(&result(code)), "{code}");
        }
        for code in [3, 9, 10, 12, 13, 14, 15, 16, 19, 23, 24, 25, 31, 60] {
            let code = ResultCode::new(code).unwrap();
            assert!(!may_be_kept(&result(code)), "{code}");
            let mut limited = result(ResultCode::NO_THREAT);
            limited.container = Some(ContainerResult { reason: Some(code), ..ContainerResult::default() });
            assert!(!may_be_kept(&limited), "a container that came to {code}");
        }
        let mut unlocked = result(ResultCode::NO_THREAT);
        unlocked.container = Some(ContainerResult { encrypted: true, ..ContainerResult::default() });
        assert!(!may_be_kept(&unlocked));
        let mut infected = result(ResultCode::INFECTED);
        infected.engines.push(EngineResult { code: ResultCode::SCAN_FAILED, ..infected.engines[0].clone() });
        assert!(!may_be_kept(&infected), "the engine that failed must be asked again");
    }

    #[test]
    fn totals_add_up_like_limits_count() {
        let (mut inner, mut outer) = (TreeTotals { depth: 1, ..TreeTotals::default() }, TreeTotals::default());
        inner.add(5, None);
        inner.add(7, None);
        outer.add(100, Some(&inner));
        outer.add(1, None);
        assert_eq!(outer, TreeTotals { files: 4, bytes: 113, depth: 2, largest_bytes: 100 });
        assert_eq!(inner.depth, 1);
    }
}
