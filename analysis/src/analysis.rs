//! What is known of one submission: who sent what under which rule, how far it is, and what was found in the file and in
//! each file nested in it.
//!
//! Times are Unix milliseconds where they name a moment (`receive_ms`, `queued_ms`, `start_ms`, `def_time_ms`) and spans in
//! milliseconds elsewhere. Lists and texts are never absent, only empty, since clients are promised that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::DataId;
use crate::password::SealedPasswords;
use crate::rule::{Rule, Skipped};
use crate::verdict::ResultCode;

/// Who submitted a file, as it was at that time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Principal {
    /// The identity that sees the analysis.
    pub user_id: String,
    /// What people call it.
    pub user_name: String,
    /// Its role at the time of submission.
    pub role: String,
}

/// What a file is. Digests are lower-case hexadecimal, empty if they were not taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileInfo {
    /// The name it was submitted or archived under. For showing only, never a path.
    pub display_name: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// MD5.
    pub md5: String,
    /// SHA-1.
    pub sha1: String,
    /// SHA-256.
    pub sha256: String,
    /// SHA-512.
    pub sha512: String,
    /// The MIME type that its content shows.
    pub file_type: String,
    /// That type in words.
    pub file_type_description: String,
    /// The groups that the type belongs to.
    pub type_category: Vec<String>,
    /// The usual extension of the type, without a dot.
    pub extension: String,
}

impl FileInfo {
    /// Which of its digests were taken: MD5, SHA-1, SHA-256, SHA-512.
    pub fn digests_taken(&self) -> [bool; 4] {
        [&self.md5, &self.sha1, &self.sha256, &self.sha512].map(|digest| !digest.is_empty())
    }
}

/// What a submission may name beside the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SentAlong {
    /// The batch that it belongs to.
    pub batch: Option<DataId>,
    /// What is meant for engines: JSON, as it came.
    pub engines_metadata: Option<String>,
    /// Where the finished analysis is to be told.
    pub callback_url: Option<String>,
    /// Where the file was fetched from, if it was not sent.
    pub download_url: Option<String>,
}

/// A submission whose blob is stored, to be recorded before its task is queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAnalysis {
    /// The analysis' id.
    pub data_id: DataId,
    /// The blob's name: 64 hexadecimal digits. Empty for a nested file, whose content is not kept.
    pub blob: String,
    /// What is known of the file before it is scanned.
    pub file: FileInfo,
    /// The rule as it was at the time of submission.
    pub rule: Rule,
    /// Who submitted it.
    pub principal: Principal,
    /// The submitting program's name for itself.
    pub user_agent: String,
    /// What the submitter wants kept with the analysis.
    pub metadata: Option<String>,
    /// What it named beside the file.
    #[serde(default)]
    pub sent_along: SentAlong,
    /// The passwords for what is encrypted in it; gone once the analysis is finished. Kept apart from the rest.
    #[serde(skip)]
    pub passwords: Option<SealedPasswords>,
    /// When the request's first byte came.
    pub receive_ms: u64,
    /// When the upload was finished.
    pub upload_ms: u64,
    /// How long taking its digests took, which goes on while it is uploaded.
    pub hash_ms: u64,
    /// When the analysis was recorded, to wait for a worker.
    pub queued_ms: u64,
}

/// What one engine said of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineResult {
    /// The engine's name, as clients see it.
    pub engine: String,
    /// Its stable id.
    pub engine_id: String,
    /// What it said.
    pub code: ResultCode,
    /// The threat's name, or what kept the engine from judging; empty if it found nothing.
    pub threat: String,
    /// When its database was made.
    pub def_time_ms: u64,
    /// How long it took.
    pub scan_ms: u64,
    /// How long the file waited for it.
    pub wait_ms: u64,
}

/// What came of taking a container apart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerResult {
    /// Files directly in it that came out. They have ordinals 0 up to this.
    pub extracted_count: u64,
    /// Files anywhere in it that have a threat.
    pub detected_count: u64,
    /// The direct member whose result, with all that is nested in it, became the container's.
    pub worst_child: Option<DataId>,
    /// Why it did not come apart completely.
    pub reason: Option<ResultCode>,
    /// The same in words.
    pub detail: String,
    /// Whether something in it needs a password that nobody gave.
    pub encrypted: bool,
    /// Whether something in it was encrypted, and a given password opened it.
    #[serde(default)]
    pub decrypted: bool,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Waiting for a thread of its worker.
    #[serde(default)]
    pub wait_ms: u64,
    /// Taking digests.
    pub hash_ms: u64,
    /// Fetching the blob.
    pub fetch_ms: u64,
    /// Detecting the type.
    pub filetype_ms: u64,
    /// Taking it apart.
    pub extraction_ms: u64,
    /// In engines.
    pub scan_ms: u64,
    /// From start to end, nested files included.
    pub total_ms: u64,
    /// When it started.
    pub start_ms: u64,
}

/// What was found in one file besides results.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// That the rule has it not scanned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// What the operator's YARA rules said; none if they were not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yara: Option<YaraFindings>,
    /// Why the rule forbids its type, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forbidden_type: Option<String>,
    /// How its name claims another type than its content has, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_mismatch: Option<String>,
    /// How its name hides what it is, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoofing: Option<Spoofing>,
    /// Who signed it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<Signer>,
}

impl Findings {
    /// Whether there is nothing to be said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the operator's YARA rules said of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct YaraFindings {
    /// 0 nothing matched, 1 something did, 3 failed, 4 not scanned.
    pub verdict: u8,
    /// The rules that matched.
    pub hits: Vec<YaraHit>,
}

/// A YARA rule that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct YaraHit {
    /// Its name.
    pub rule: String,
    /// Where it comes from: the file it was read from, below its rule folder.
    pub namespace: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// What its author wrote about it.
    pub meta: BTreeMap<String, serde_json::Value>,
}

/// How a name hides what a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoofing {
    /// In a few words.
    pub overview: String,
    /// What is odd about this name.
    pub explanation: String,
}

/// Who signed a program, as its signature says. Whether the signature can be trusted nobody has checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signer {
    /// The digest that was signed, such as `sha256`.
    pub digest_algorithm: String,
    /// How it was signed, such as `rsaEncryption`.
    pub digest_encryption_algorithm: String,
    /// Who issued the certificate.
    pub issuer: String,
    /// The certificate's serial number in hexadecimal.
    pub serial_number: String,
    /// To whom it was issued.
    pub vendor_name: String,
    /// The certificate's version, counted from 0.
    pub version: String,
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileResult {
    /// The file's own result.
    pub own: ResultCode,
    /// The worst of its own result and those of all files nested in it.
    pub overall: ResultCode,
    /// What each engine said.
    pub engines: Vec<EngineResult>,
    /// What the file is.
    pub file: FileInfo,
    /// Present if it is a container.
    pub container: Option<ContainerResult>,
    /// Why it is blocked, worst first; empty if it is allowed.
    pub blocked_reasons: Vec<String>,
    /// Where the time went.
    pub times: Times,
    /// What failed, to what, if something did.
    pub detail: String,
    /// What was found besides results.
    #[serde(default, skip_serializing_if = "Findings::is_empty")]
    pub findings: Findings,
}

impl FileResult {
    /// The result of a file that was not scanned at all, for this reason and, in words, this one.
    pub fn unscanned(file: FileInfo, code: ResultCode, detail: String, now_ms: u64) -> Self {
        let mut blocked_reasons = vec![code.text().to_owned()];
        blocked_reasons.extend((!detail.is_empty()).then(|| detail.clone()));
        Self {
            own: code,
            overall: code,
            engines: Vec::new(),
            file,
            container: None,
            blocked_reasons,
            times: Times { start_ms: now_ms, ..Times::default() },
            detail,
            findings: Findings::default(),
        }
    }
}

/// One file found in another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NestedRecord {
    /// The file's id: [`DataId::nested`] of its place.
    pub data_id: DataId,
    /// The submission that it came with.
    pub root: DataId,
    /// The file that it lay in directly.
    pub parent: DataId,
    /// Its index in the parent: from 0, without gaps.
    pub ordinal: u32,
    /// Its place in the root, for showing: the members' names joined by `/`.
    pub path: String,
    /// What was found in it.
    pub result: FileResult,
}

/// How far an analysis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waiting for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// Its result stands.
    Done,
    /// Its result stands, and is that it was cancelled.
    Cancelled,
}

impl State {
    /// Whether the result stands and nothing changes it any more.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// Everything that is recorded of an analysis, or of a nested file.
///
/// A nested file's record has its root's rule, principal, user agent, metadata and times of submission; its `new.file` is the
/// nested file itself, and it is always finished, since only finished nested files are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnalysisRecord {
    /// The id that was asked for.
    pub data_id: DataId,
    /// What was submitted.
    pub new: NewAnalysis,
    /// How far it is.
    pub state: State,
    /// Whether somebody asked for it to be cancelled.
    pub cancel_requested: bool,
    /// The name of the sanitized file's content, if one was made.
    pub sanitized_blob: Option<String>,
    /// When a worker last started on it.
    pub started_ms: Option<u64>,
    /// The result, once it is finished.
    pub result: Option<FileResult>,
    /// The submission: the record's own id unless it is nested.
    pub root: DataId,
    /// The file that a nested one lay in.
    pub parent: Option<DataId>,
}
