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
    SealedPasswords, SentAlong, StoreError, StoreFault, Task, TaskQueue,
};
use lazaret_digests::{Digests, Selection};
use lazaret_node_client::{Cluster, Environment, PutError, Stored, Upload};
use lazaret_protocol::limits::BLOB_BYTES_MAX;

use crate::access::Caller;
use crate::admission::Admission;
use crate::backlog::Backlog;
use crate::decode::{DecodeError, Decoder, Encoding};
use crate::hashing::Hashing;
use crate::options::UPLOAD_BYTES_PER_SECOND_MIN;
use crate::rate::Rates;

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
    /// What it names beside the file.
    pub sent_along: SentAlong,
    /// Passwords for what is encrypted in it, to be tried before those of the rule.
    pub passwords: PasswordList,
}

/// Why a submission failed. Nothing was created.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The budget of uploads in flight is spent.
    #[error("the uploads in flight take all the memory or all the places there are")]
    Busy,
    /// So many submissions wait for workers that no more are taken.
    #[error("as many submissions wait for scan workers as may")]
    QueueFull,
    /// The caller submits faster than it may.
    #[error("the key submits faster than it may; it may go on in {retry_after:?}")]
    TooFast {
        /// How long to wait.
        retry_after: Duration,
    },
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
    /// The body is not what its encoding says.
    #[error(transparent)]
    Encoding(#[from] DecodeError),
    /// The decoded body has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The decoded body is longer than its rule takes.
    #[error("the file has more than the {max} bytes that rule {rule:?} takes")]
    TooLarge {
        /// The longest file.
        max: u64,
        /// The rule.
        rule: String,
    },
    /// The body became too many times its length.
    #[error("the body becomes more than {ratio} times as long when it is decoded")]
    Expanded {
        /// How many times as long it may become.
        ratio: u64,
    },
    /// The batch was closed meanwhile.
    #[error("the batch is closed")]
    BatchClosed,
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
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) seal: Arc<PasswordSeal>,
    pub(crate) digests: Selection,
    pub(crate) body_idle_timeout: Duration,
}

/// What is known of a body's length before it comes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Announced {
    /// It has so many bytes.
    Exactly(u64),
    /// It may have so many.
    AtMost(u64),
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
    /// What comes encoded is decoded before anything else looks at it.
    decoder: Option<Decoder>,
    rule: Rule,
    received: u64,
    declared: u64,
    /// Whether it must have as many bytes as declared, or may have fewer.
    exact: bool,
    /// Bytes of the file so far: those received, or what they decode to.
    produced: u64,
    /// What is gathered until it is worth handing on.
    piece: BytesMut,
}

impl Intake {
    /// Stores `body`, decoded if it comes encoded, creates its analysis and queues it; returns its id and its length. `body`
    /// is left where the failure found it.
    pub(crate) async fn submit<S, E>(
        &self,
        caller: &Caller,
        submission: Submission,
        announced: Announced,
        encoding: Option<Encoding>,
        body: &mut S,
    ) -> Result<(DataId, u64), SubmitError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (declared, exact) = match announced {
            Announced::Exactly(length) => (length, true),
            Announced::AtMost(length) => (length, false),
        };
        // What comes encoded may become long, however short it is.
        let held = if encoding.is_some() { u64::MAX } else { declared };
        if !self.backlog.has_room(&submission.principal.user_id).await {
            return Err(SubmitError::QueueFull);
        }
        let _place = self.admission.admit(caller, held).ok_or(SubmitError::Busy)?;
        let now = self.environment.clock.monotonic();
        let charged = if exact { declared } else { 0 };
        self.rates.take(caller, charged, now).map_err(|retry_after| SubmitError::TooFast { retry_after })?;
        let receive_ms = self.environment.clock.unix_ms();
        let data_id = DataId::random();
        // Before anything is done about the file, so that all of it is in its trace.
        tracing::Span::current().record("data_id", tracing::field::display(data_id));
        let pool = lazaret_digests::Pool::of_process().map_err(|error| SubmitError::Hashing(error.into()))?;
        let hashing = Hashing::new(&pool, self.digests);
        let mut receiving = Receiving {
            upload: self.cluster.upload(),
            hashing,
            decoder: encoding.map(Decoder::new),
            rule: submission.rule.clone(),
            received: 0,
            declared,
            exact,
            produced: 0,
            piece: BytesMut::new(),
        };
        let received = receiving.receive(body, self.body_idle_timeout).await;
        // What came, or was decoded, beyond what was announced is owed as well, whatever became of it.
        let owed = receiving.produced.max(receiving.received).saturating_sub(charged);
        self.rates.add(caller, owed, self.environment.clock.monotonic());
        received?;
        let upload_ms = self.environment.clock.unix_ms();
        let (stored, digests, hash_time) = receiving.finish().await?;
        let hash_ms = millis(hash_time);

        let passwords = self.sealed_passwords(data_id, &submission)?;
        let timing = Timing { receive_ms, upload_ms, hash_ms };
        let analysis = NewAnalysis { passwords, ..self.analysis(data_id, submission, &stored, &digests, timing) };
        self.results.create(&analysis).await.map_err(|error| match error.source {
            StoreFault::BatchClosed => SubmitError::BatchClosed,
            _ => SubmitError::Results(error),
        })?;
        self.backlog.add(&analysis.principal.user_id);
        let task = Task::of(&analysis, analysis.queued_ms);
        if let Err(error) = self.queue.push(task).await {
            tracing::warn!(%data_id, %error, "the task could not be queued now; the sweep will queue it");
        }
        tracing::info!(
            %data_id,
            bytes = stored.length,
            rule = %analysis.rule.name,
            user = %analysis.principal.user_name,
            upload_ms = upload_ms.saturating_sub(receive_ms),
            hash_ms,
            replicas = stored.durable_on.len(),
            "file accepted"
        );
        Ok((data_id, stored.length))
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
            sent_along: submission.sent_along,
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
    async fn receive<S, E>(&mut self, body: &mut S, idle: Duration) -> Result<(), SubmitError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // What the client took. That the store takes its time is not the client's fault.
        let mut waited = Duration::ZERO;
        loop {
            let allowed = idle.saturating_add(Duration::from_secs(self.received / UPLOAD_BYTES_PER_SECOND_MIN));
            let began = tokio::time::Instant::now();
            let Ok(next) = tokio::time::timeout(idle.min(allowed.saturating_sub(waited)), body.next()).await else {
                return Err(self.slow());
            };
            waited = waited.saturating_add(began.elapsed());
            let Some(next) = next else { break };
            let bytes = next.map_err(|source| SubmitError::Broken {
                received: self.received,
                declared: self.declared,
                source: source.into(),
            })?;
            self.received += bytes.len() as u64;
            if self.received > self.declared && !self.exact {
                return Err(SubmitError::TooLarge { max: self.declared, rule: self.rule.name.clone() });
            }
            if self.received > self.declared {
                return Err(SubmitError::Overlong { declared: self.declared });
            }
            self.take(bytes).await?;
        }
        if self.exact && self.received < self.declared {
            return Err(SubmitError::Incomplete { received: self.received, declared: self.declared });
        }
        while let Some(decoder) = &mut self.decoder {
            let last = decoder.finish().await?;
            if last.is_empty() {
                break;
            }
            self.gather(last).await?;
        }
        if self.produced == 0 {
            return Err(SubmitError::Empty);
        }
        let piece = std::mem::take(&mut self.piece);
        if !piece.is_empty() {
            self.hand_on(piece.freeze()).await?;
        }
        Ok(())
    }

    /// Takes what was received: as it is, or decoded step by step.
    async fn take(&mut self, mut bytes: Bytes) -> Result<(), SubmitError> {
        while let Some(decoder) = &mut self.decoder {
            if bytes.is_empty() {
                return Ok(());
            }
            let decoded = decoder.step(&mut bytes).await?;
            self.gather(decoded).await?;
        }
        self.gather(bytes).await
    }

    /// Gathers bytes of the file and hands on what is long enough.
    async fn gather(&mut self, mut bytes: Bytes) -> Result<(), SubmitError> {
        self.produced = self.produced.saturating_add(bytes.len() as u64);
        self.check_length()?;
        while !bytes.is_empty() {
            if self.piece.capacity() == 0 {
                let length = self.next_piece_bytes(bytes.len());
                self.piece.reserve(length);
            }
            let taken = bytes.split_to(bytes.len().min(PIECE_BYTES.saturating_sub(self.piece.len())));
            self.piece.extend_from_slice(&taken);
            if self.piece.len() >= PIECE_BYTES {
                let piece = std::mem::take(&mut self.piece).freeze();
                self.hand_on(piece).await?;
            }
        }
        Ok(())
    }

    /// Whether the file stays within its rule. A body that is not encoded was measured by its announced length.
    fn check_length(&self) -> Result<(), SubmitError> {
        let max = self.rule.max_file_size_bytes.min(BLOB_BYTES_MAX);
        if self.produced > max {
            return Err(SubmitError::TooLarge { max, rule: self.rule.name.clone() });
        }
        let limits = &self.rule.limits;
        // By the whole body's length where it is known: else what comes of a body would depend on the pieces in which it came.
        let body = if self.exact { self.declared } else { self.received };
        if self.produced > limits.ratio_free_bytes && self.produced > body.saturating_mul(limits.ratio) {
            return Err(SubmitError::Expanded { ratio: limits.ratio });
        }
        Ok(())
    }

    /// The length of the buffer to begin: no longer than what is still to come, `at_hand` bytes of it received already.
    fn next_piece_bytes(&self, at_hand: usize) -> usize {
        if self.decoder.is_some() {
            return PIECE_BYTES;
        }
        let to_come = usize::try_from(self.declared.saturating_sub(self.received)).unwrap_or(PIECE_BYTES);
        at_hand.saturating_add(to_come).min(PIECE_BYTES)
    }

    async fn hand_on(&mut self, piece: Bytes) -> Result<(), SubmitError> {
        self.upload.write(piece.clone()).await.map_err(SubmitError::Store)?;
        self.hashing.update(piece).await;
        Ok(())
    }

    /// Makes the body durable; the last digests are computed meanwhile.
    async fn finish(self) -> Result<(Stored, Digests, Duration), SubmitError> {
        let (stored, hashed) = tokio::join!(self.upload.finish(), self.hashing.finish());
        let stored = stored.map_err(SubmitError::Store)?;
        let (digests, hash_time) = hashed.map_err(|lost| SubmitError::Hashing(lost.into()))?;
        if stored.name.as_bytes() != &digests.blake3 || stored.length != self.produced {
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
