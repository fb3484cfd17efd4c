//! Containers that several workers take apart together, and the seam behind which they agree who takes which members.
//!
//! The worker that has the analysis' task leads: it opens a *share*, and idle workers join it. Each walks through the whole
//! container, in the same order, and claims the next members that nobody has when it comes to them; what others have it passes
//! over. When it is through it says what was found in its own. The lead folds all parts into the one result.
//!
//! Invariants that every back-end keeps:
//! - What is claimed has no gaps and is one part's alone: all ordinals below the highest one claimed belong to somebody.
//! - A part ends once: with a result, or taken by the lead because its lease had ended. Never both.
//! - A share that is opened again knows nothing of what was there before, and its former parts are lost.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::cache::TreeTotals;
use crate::id::DataId;
use crate::store::StoreError;
use crate::verdict::ResultCode;

/// Most workers that take one container apart together. Each reads all of it.
pub const PARTS_MAX: u32 = 32;

/// What proves that a part is held. Made by the back-end; nothing else can be read from it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PartToken(pub String);

impl fmt::Debug for PartToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartToken({})", self.0)
    }
}

/// A share to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewShare {
    /// The analysis whose file is shared.
    pub root: DataId,
    /// The worker that leads: the name of its process, which no other one has.
    pub worker: String,
    /// What takes the file apart and judges it there: the build and the engines with their databases. Another one may walk through the
    /// same container in another order, or find less.
    pub pipeline: String,
    /// When the rule's time for the analysis is over.
    pub deadline_ms: Option<u64>,
}

/// A part that a worker has joined with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The analysis whose file is shared.
    pub root: DataId,
    /// What to claim, extend and finish with.
    pub token: PartToken,
    /// When the rule's time for the analysis is over.
    pub deadline_ms: Option<u64>,
}

/// The worst of a part's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorstMember {
    /// Its result, its own nested files included.
    pub code: ResultCode,
    /// Its index in the container.
    pub ordinal: u32,
    /// Its id.
    pub data_id: DataId,
}

/// What was found in a part's members, all of which are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartResult {
    /// The walk came to the container's end, and nothing kept the part from handing out all that it had claimed.
    pub complete: bool,
    /// The first of the worst members.
    pub worst: Option<WorstMember>,
    /// Threats found.
    pub detected: u64,
    /// What its members took.
    pub totals: TreeTotals,
    /// Whether one of them can't be kept as a verdict.
    pub unkeepable: bool,
    /// What of the tree's limits was used: files and bytes that came out.
    pub used_files: u64,
    /// The bytes.
    pub used_bytes: u64,
    /// Why the container did not come apart completely, as far as this part saw.
    pub reason: Option<ResultCode>,
    /// In words.
    pub detail: String,
    /// Whether something needed a password that nobody gave.
    pub encrypted: bool,
    /// Whether a given password opened something.
    #[serde(default)]
    pub decrypted: bool,
}

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartState {
    /// A worker has it.
    Working,
    /// Its lease ended, or its members were taken from it already.
    Lost,
    /// All its members are recorded.
    Done(Box<PartResult>),
}

/// A part as the lead sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartView {
    /// Its token.
    pub token: PartToken,
    /// The members that it claimed, in order.
    pub claimed: Vec<Range<u32>>,
    /// How it is.
    pub state: PartState,
}

/// Where workers agree who takes which members of a container.
#[async_trait]
pub trait Shares: Send + Sync {
    /// Opens a share; the lead's own part in it. One of the same root is replaced.
    async fn open_share(&self, share: &NewShare, until_ms: u64) -> Result<PartToken, StoreError>;

    /// Joins the oldest share that this worker is not in yet, whose lead has the same pipeline and is alive, of which no part
    /// was lost, and that has fewer than [`PARTS_MAX`].
    async fn join_share(
        &self,
        worker: &str,
        pipeline: &str,
        until_ms: u64,
        now_ms: u64,
    ) -> Result<Option<Part>, StoreError>;

    /// Gives a part the next `count` members that nobody has, at least one. None if it is lost, or ended.
    async fn claim_members(&self, part: &PartToken, count: u32) -> Result<Option<Range<u32>>, StoreError>;

    /// Lets a part's lease end at `until_ms`; at 0, at once. False if it is lost.
    async fn extend_part(&self, part: &PartToken, until_ms: u64) -> Result<bool, StoreError>;

    /// Ends a part with what was found. False if it is lost.
    async fn finish_part(&self, part: &PartToken, result: &PartResult) -> Result<bool, StoreError>;

    /// All parts of the share that `lead` opened, its own left out. None if that share is closed or was opened again.
    async fn parts(&self, lead: &PartToken, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreError>;

    /// Takes the members of a part whose lease has ended; from then on it is lost. False if it has ended otherwise, or not yet.
    async fn take_part(&self, part: &PartToken, now_ms: u64) -> Result<bool, StoreError>;

    /// Closes the share of an analysis, if there is one. Its parts are lost.
    async fn close_share(&self, root: DataId) -> Result<(), StoreError>;

    /// Removes records of files nested in an unfinished analysis, at most `limit` at once; how many. 0 when none are left.
    async fn discard_nested(&self, root: DataId, limit: u32) -> Result<u64, StoreError>;
}
