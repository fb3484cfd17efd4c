//! What the gateway and the scan workers share: analyses and their results, the table of result codes, rules, and the
//! three seams behind which results, the task queue and progress are kept.
//!
//! Invariants:
//! - What `ResultStore::create` acknowledged survives a crash of any process of the host.
//! - Every step is idempotent: creating a task, recording nested files and finishing an analysis may each be repeated by
//!   whoever doubts that the first time succeeded.
//! - No clock is read here, except to pace waiting: whoever calls says what time it is.
//!
//! This crate moves no file contents, runs no engine and speaks no HTTP.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod analysis;
pub mod batch;
pub mod cache;
pub mod conformance;
pub mod id;
pub mod outdated;
pub mod password;
pub mod rule;
pub mod share;
pub mod sqlite;
pub mod store;
pub mod verdict;
pub mod worker_report;

pub use analysis::{
    AnalysisRecord, ContainerResult, EngineResult, FileInfo, FileResult, Findings, NestedRecord, NewAnalysis,
    Principal, SentAlong, Signer, Spoofing, State, Times, YaraFindings, YaraHit,
};
pub use batch::{BatchGroup, BatchRecord, NewBatch};
pub use cache::{EngineVersion, KeptTree, KeptVerdict, TreeTotals, VERDICT_BATCH_MAX, VerdictKey, VerdictScope};
pub use id::DataId;
pub use outdated::outdated_data;
pub use password::{PasswordList, PasswordSeal, SealError, SealedPasswords};
pub use rule::{Limits, Rule, RuleError, RuleSet, Rules, SelectError};
pub use share::{NewShare, Part, PartResult, PartState, PartToken, PartView, Shares, WorstMember};
pub use sqlite::{SqliteBackend, backup};
pub use store::{
    Callback, Claim, DigestQuery, Lease, LeaseToken, NESTED_BATCH_MAX, Page, Progress, ProgressCache, QueueDepth,
    ResultStore, SMALL_FILE_BYTES, StoreError, StoreFault, Task, TaskKind, TaskQueue,
};
pub use verdict::{Extraction, Outcome, Policy, ResultCode, own_result, worst};
pub use worker_report::{DiskReport, EngineInfo, HostReport, WorkerReport};
