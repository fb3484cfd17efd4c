//! From a stream of bytes to an analysis, free of HTTP types.
//!
//! The order is the promise: a place in the budget, the body durable on the quorum, the analysis row, the task, and only
//! then the id. Whatever fails before the row leaves no analysis behind; a task that could not be queued is queued by the
//! sweep over unfinished analyses, so the id is answered all the same.
//!
//! Pieces are copied into buffers of `PIECE_BYTES`, so that what an upload holds is what its place was charged,
//! however small the pieces that a client sends.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use lazaret_analysis::{
    DataId, FileInfo, NewAnalysis, PasswordList, PasswordSeal, Principal, ResultStore, Rule, SealError,
    SealedPasswords, StoreError, Task, TaskQueue,
};
use lazaret_digests::{Digests, Selection};
use lazaret_node_client::{Cluster, Environment, PutError, Stored, Upload};

use crate::admission::Admission;
use crate::hashing::Hashing;
use crate::options::UPLOAD_BYTES_PER_SECOND_MIN;

/// Bytes that are gathered before they go to the store and the digests.
const PIECE_BYTES: usize = 256 * 1024;

/// What a client says of the file it submits, decided upon and ready to be kept.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The name to show, as the client gave it; it is never a path.
    pub display_name: String,
    /// The rule that applies, as it is now: the analysis keeps this snapshot.
    pub rule: Rule,
    /// Who submits.
    pub principal: Principal,
    /// The client's own identification.
    pub user_agent: String,
    /// What the client wants kept beside the analysis.
    pub metadata: Option<String>,
    /// Passwords for what is encrypted in it, to be tried before those of the rule.
    pub passwords: PasswordList,
}

/// Why a submission failed. Nothing was created.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The budget of uploads in flight is spent.
    #[error("the uploads in flight take all the memory or all the places there are")]
    Busy,
    /// The body ended early.
    #[error("the body ended after {received} of {declared} bytes")]
    Incomplete {
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        declared: u64,
    },
    /// The body is longer than was announced.
    #[error("the body is longer than the {declared} bytes that were announced")]
    Overlong {
        /// Bytes that were announced.
        declared: u64,
    },
    /// No byte came for too long, or too few over the whole time.
    #[error("the body came too slowly: {received} of {declared} bytes")]
    Slow {
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        declared: u64,
    },
    /// The connection failed in the middle of the body.
    #[error("the body broke off after {received} of {declared} bytes")]
    Broken {
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        declared: u64,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store did not take the body.
    #[error("the file could not be stored: {0}")]
    Store(#[source] PutError),
    /// The store took something else than what was hashed here.
    #[error("the store named the body {stored}, its digest is {hashed}")]
    Mismatch {
        /// The store's name of the blob.
        stored: String,
        /// BLAKE3 of what was received.
        hashed: String,
    },
    /// The digests could not be computed.
    #[error("the digests could not be computed: {0}")]
    Hashing(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The passwords could not be sealed.
    #[error("{0}")]
    Passwords(#[from] SealError),
    /// The analysis could not be recorded.
    #[error("the analysis could not be recorded")]
    Results(#[source] StoreError),
}

impl SubmitError {
    /// Whether the body itself failed: it ended, broke off, stalled, or is not what was announced.
    pub fn is_of_the_body(&self) -> bool {
        matches!(self, Self::Incomplete { .. } | Self::Overlong { .. } | Self::Slow { .. } | Self::Broken { .. })
    }
}

/// Takes submissions in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake {
    pub(crate) results: Arc<dyn ResultStore>,
    pub(crate) queue: Arc<dyn TaskQueue>,
    pub(crate) cluster: Cluster,
    pub(crate) environment: Environment,
    pub(crate) admission: Admission,
    pub(crate) seal: Arc<PasswordSeal>,
    pub(crate) digests: Selection,
    pub(crate) body_idle_timeout: Duration,
}

/// When a body came, and how long its digests took.
struct Timing {
    receive_ms: u64,
    upload_ms: u64,
    hash_ms: u64,
}

/// A body on its way: to the store and to the digests.
struct Receiving {
    upload: Upload,
    hashing: Hashing,
    received: u64,
    declared: u64,
}

impl Intake {
    /// Stores `body`, creates its analysis and queues it. `body` is left where the failure found it.
    pub(crate) async fn submit<S, E>(
        &self,
        submission: Submission,
        declared: u64,
        body: &mut S,
    ) -> Result<DataId, SubmitError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _place = self.admission.admit(declared).ok_or(SubmitError::Busy)?;
        let receive_ms = self.environment.clock.unix_ms();
        let pool = lazaret_digests::Pool::of_process().map_err(|error| SubmitError::Hashing(error.into()))?;
        let hashing = Hashing::new(&pool, self.digests);
        let receiving = Receiving { upload: self.cluster.upload(), hashing, received: 0, declared };
        let slowest =
            self.body_idle_timeout.saturating_add(Duration::from_secs(declared / UPLOAD_BYTES_PER_SECOND_MIN));
        let deadline = tokio::time::Instant::now().checked_add(slowest);
        let receiving = receiving.receive(body, self.body_idle_timeout, deadline).await?;
        let upload_ms = self.environment.clock.unix_ms();
        let (stored, digests, hash_time) = receiving.finish().await?;
        let hash_ms = millis(hash_time);

        let data_id = DataId::random();
        let passwords = self.sealed_passwords(data_id, &submission)?;
        let timing = Timing { receive_ms, upload_ms, hash_ms };
        let analysis = NewAnalysis { passwords, ..self.analysis(data_id, submission, &stored, &digests, timing) };
        self.results.create(&analysis).await.map_err(SubmitError::Results)?;
        let task = Task::scan(data_id, analysis.queued_ms);
        if let Err(error) = self.queue.push(task).await {
            tracing::warn!(%data_id, %error, "the task could not be queued now; the sweep will queue it");
        }
        tracing::info!(
            %data_id,
            bytes = declared,
            rule = %analysis.rule.name,
            user = %analysis.principal.user_name,
            upload_ms = upload_ms.saturating_sub(receive_ms),
            hash_ms,
            replicas = stored.durable_on.len(),
            "file accepted"
        );
        Ok(data_id)
    }

    fn sealed_passwords(&self, data_id: DataId, submission: &Submission) -> Result<Option<SealedPasswords>, SealError> {
        let mut passwords = submission.passwords.clone();
        passwords.extend(&submission.rule.passwords);
        self.seal.seal(data_id, &passwords)
    }

    fn analysis(
        &self,
        data_id: DataId,
        submission: Submission,
        stored: &Stored,
        digests: &Digests,
        timing: Timing,
    ) -> NewAnalysis {
        NewAnalysis {
            data_id,
            blob: stored.name.to_string(),
            file: FileInfo {
                display_name: submission.display_name,
                size_bytes: stored.length,
                md5: digests.md5_hex(),
                sha1: digests.sha1_hex(),
                sha256: digests.sha256_hex(),
                sha512: digests.sha512_hex(),
                ..FileInfo::default()
            },
            rule: submission.rule,
            principal: submission.principal,
            user_agent: submission.user_agent,
            metadata: submission.metadata,
            passwords: None,
            receive_ms: timing.receive_ms,
            upload_ms: timing.upload_ms,
            hash_ms: timing.hash_ms,
            queued_ms: self.environment.clock.unix_ms(),
        }
    }
}

impl Receiving {
    /// Reads the body to its announced end, gathering what comes into pieces.
    async fn receive<S, E>(
        mut self,
        body: &mut S,
        idle: Duration,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Self, SubmitError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut piece = BytesMut::new();
        loop {
            let next = match tokio::time::timeout(idle, body.next()).await {
                Ok(_) if deadline.is_some_and(|deadline| tokio::time::Instant::now() > deadline) => {
                    return Err(self.slow());
                }
                Ok(next) => next,
                Err(_) => return Err(self.slow()),
            };
            let Some(next) = next else { break };
            let mut bytes = next.map_err(|source| SubmitError::Broken {
                received: self.received,
                declared: self.declared,
                source: source.into(),
            })?;
            self.received += bytes.len() as u64;
            if self.received > self.declared {
                return Err(SubmitError::Overlong { declared: self.declared });
            }
            while !bytes.is_empty() {
                if piece.capacity() == 0 {
                    piece.reserve(self.next_piece_bytes(bytes.len()));
                }
                let taken = bytes.split_to(bytes.len().min(PIECE_BYTES.saturating_sub(piece.len())));
                piece.extend_from_slice(&taken);
                if piece.len() >= PIECE_BYTES {
                    self = self.hand_on(std::mem::take(&mut piece).freeze()).await?;
                }
            }
        }
        if self.received < self.declared {
            return Err(SubmitError::Incomplete { received: self.received, declared: self.declared });
        }
        if piece.is_empty() { Ok(self) } else { self.hand_on(piece.freeze()).await }
    }

    /// The length of the buffer to begin: no longer than what is still to come, `at_hand` bytes of it received already.
    fn next_piece_bytes(&self, at_hand: usize) -> usize {
        let to_come = usize::try_from(self.declared.saturating_sub(self.received)).unwrap_or(PIECE_BYTES);
        at_hand.saturating_add(to_come).min(PIECE_BYTES)
    }

    async fn hand_on(mut self, piece: Bytes) -> Result<Self, SubmitError> {
        self.upload.write(piece.clone()).await.map_err(SubmitError::Store)?;
        self.hashing.update(piece).await;
        Ok(self)
    }

    /// Makes the body durable; the last digests are computed meanwhile.
    async fn finish(self) -> Result<(Stored, Digests, Duration), SubmitError> {
        let (stored, hashed) = tokio::join!(self.upload.finish(), self.hashing.finish());
        let stored = stored.map_err(SubmitError::Store)?;
        let (digests, hash_time) = hashed.map_err(|lost| SubmitError::Hashing(lost.into()))?;
        if stored.name.as_bytes() != &digests.blake3 || stored.length != self.declared {
            return Err(SubmitError::Mismatch { stored: stored.name.to_string(), hashed: hex::encode(digests.blake3) });
        }
        Ok((stored, digests, hash_time))
    }

    fn slow(&self) -> SubmitError {
        SubmitError::Slow { received: self.received, declared: self.declared }
    }
}

/// Whole milliseconds of a duration.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
