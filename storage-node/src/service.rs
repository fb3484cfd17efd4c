//! Answers requests: one call of [`NodeService::handle`] serves one stream, whatever transport it came over.
//!
//! Invariants: a right is checked before anything else of a request is looked at; lengths are checked before the bytes
//! they announce are read; requests, body bytes in flight and reading threads are bounded; a peer that makes no progress
//! is cut. What is malformed is answered with `BadRequest`, and the node goes on serving. A copy found damaged half way
//! resets its stream, so that the caller never takes a part for the whole. This module knows no disk and no key; proving
//! a role is the transport's part ([`crate::listener`]).

use std::sync::Arc;
use std::time::Duration;

use lazaret_node_client::environment::Environment;
use lazaret_node_client::local::Handler;
use lazaret_node_client::stream::{RecvHalf, SendHalf, StreamError};
use lazaret_protocol::cluster_map::{ClusterMap, NodeState};
use lazaret_protocol::limits::{HAS_NAMES_MAX, PUT_TIME_SKEW_MAX_MS};
use lazaret_protocol::message::{ErrorCode, ErrorReply, Ping, Request, Response, Role, Welcome};
use lazaret_protocol::name::BlobName;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::engine::{EngineError, Origin};
use crate::node::repair::answer;
use crate::node::{Node, map, retention};
use crate::store::Store;

mod get;
mod put;

/// Requests under way at once. Each holds a task and a few buffers; beyond it callers are told `Busy` and go elsewhere.
pub const REQUESTS_MAX: usize = 4096;
/// Body bytes of puts that were read from peers and are not yet with the engine's writer.
pub const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Blobs being read at once: each holds a blocking thread for as long as its peer takes it.
pub const READS_MAX: usize = 128;
/// How long to wait until a peer has received the end of an answer. A peer that is gone without a word says nothing.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take for one step: to send a frame it began, to take a piece of an answer.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one node's store. Clones serve the same one, within the same bounds.
#[derive(Clone)]
pub struct NodeService {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    store: Store,
    environment: Environment,
    requests: Semaphore,
    body_bytes: Semaphore,
    reads: Arc<Semaphore>,
}

/// Why a request was not carried out.
enum Refusal {
    /// To be told to the peer.
    Told(ErrorReply),
    /// The peer or the stream is gone, or the answer is half way out: there is nothing to tell, only to reset.
    Gone(String),
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Told(ErrorReply { code, message: message.into() })
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Codec(_) | StreamError::FrameTooLong(_) => Self::bad_request(error.to_string()),
            StreamError::Reset | StreamError::EndedEarly | StreamError::ConnectionLost(_) => {
                Self::Gone(error.to_string())
            }
        }
    }
}

impl NodeService {
    /// A service for `node`.
    pub fn new(node: Node) -> Self {
        let inner = Inner {
            store: node.shared.store.clone(),
            environment: node.shared.environment.clone(),
            node,
            requests: Semaphore::new(REQUESTS_MAX),
            body_bytes: Semaphore::new(BODY_BYTES_MAX),
            reads: Arc::new(Semaphore::new(READS_MAX)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whom a new connection reached.
    pub fn welcome(&self) -> Welcome {
        let inner = &self.inner;
        Welcome { node: inner.node.id(), epoch: inner.node.map().epoch, now_ms: inner.environment.clock.unix_ms() }
    }

    /// Serves each stream it is given with the rights of `role`, in a task of its own: for the in-process network.
    pub fn handler(&self, role: Role) -> Handler {
        let service = self.clone();
        Arc::new(move |send, recv| {
            let serving = service.clone();
            service.inner.environment.spawner.spawn(Box::pin(async move { serving.handle(role, send, recv).await }));
        })
    }

    /// Serves one stream to its end, which is when the peer has received the answer.
    pub async fn handle(&self, role: Role, mut send: SendHalf, mut recv: RecvHalf) {
        let permit = self.inner.requests.try_acquire();
        let served = match &permit {
            Ok(_) => self.inner.serve(role, &mut send, &mut recv).await,
            Err(_) => Err(Refusal::new(ErrorCode::Busy, format!("{REQUESTS_MAX} requests are under way, try again"))),
        };
        let answered = match served {
            Err(Refusal::Told(reply)) => {
                tracing::debug!(node = %self.inner.node.id(), code = %reply.code, message = reply.message, "request refused");
                self.inner.respond(&mut send, Response::Error(reply)).await
            }
            served => served,
        };
        if let Err(Refusal::Gone(reason)) = answered {
            tracing::debug!(node = %self.inner.node.id(), reason, "request abandoned");
            return send.reset();
        }
        // Until then the request counts as under way: whoever stops the node would cut the answer off.
        let _ = self.inner.environment.within(DELIVERY_TIMEOUT, send.delivered()).await;
    }

    /// Waits until no request is under way; requests that come meanwhile are told `Busy`.
    pub async fn idle(&self) {
        // The semaphore is never closed.
        let _ = self.inner.requests.acquire_many(REQUESTS_MAX as u32).await;
    }
}

impl Inner {
    async fn serve(&self, role: Role, send: &mut SendHalf, recv: &mut RecvHalf) -> Result<(), Refusal> {
        let request: Request = self.step("sending the request", recv.recv_message()).await?;
        let (name, began) = (name_of(&request), self.environment.clock.monotonic());
        let outcome = self.carry_out(role, request, send, recv).await;
        let told = match &outcome {
            Ok(()) => "ok".to_owned(),
            Err(Refusal::Told(reply)) => reply.code.to_string(),
            Err(Refusal::Gone(_)) => "abandoned".to_owned(),
        };
        let took = self.environment.clock.monotonic().saturating_sub(began);
        self.node.shared.metrics.request(name, &told, took);
        outcome
    }

    async fn carry_out(
        &self,
        role: Role,
        request: Request,
        send: &mut SendHalf,
        recv: &mut RecvHalf,
    ) -> Result<(), Refusal> {
        check_right(role, &request)?;
        let shared = &self.node.shared;
        let _wanted = (role != Role::Peer && is_work(&request)).then(|| shared.foreground.begin(&self.environment));
        let response = match request {
            Request::Get(get) => return self.get(get, send).await,
            Request::Put(header) => self.put(header, origin(role), recv).await?,
            Request::PutLocator(put) => {
                self.check_writable()?;
                self.store.put_locator(put, origin(role)).await?;
                Response::LocatorPut
            }
            Request::Has(names) => self.has(names).await?,
            Request::Stat(name) => Response::Stat(self.blocking(move |store| store.stat(name)).await??),
            Request::Status => Response::Status(self.blocking(|store| store.status()).await?),
            Request::Map => Response::Map(ClusterMap::clone(&self.node.map())),
            Request::Hello(_) => return Err(Refusal::bad_request("Hello is a connection's first stream only")),
            Request::PushMap(map) => {
                map::replace(shared, map).await.map_err(Refusal::Told)?;
                Response::MapPushed
            }
            Request::Delete(tombstone) => {
                self.check_time(role, tombstone.time_ms)?;
                self.store.delete(tombstone).await?;
                Response::Deleted
            }
            Request::Hold(mut hold) => {
                self.check_time(role, hold.time_ms)?;
                // What has expired comes back for nobody but a node where the hold came in time.
                hold.from_bucket = hold.from_bucket.filter(|_| role == Role::Peer);
                self.store.hold(hold).await?;
                Response::HoldSet
            }
            Request::RepairDigests(scope) => {
                Response::RepairDigests(answer::digests(shared, scope).await.map_err(Refusal::Told)?)
            }
            Request::RepairItems(page) => {
                Response::RepairItems(answer::items(shared, page).await.map_err(Refusal::Told)?)
            }
            Request::Verify(claims) => Response::Verified(answer::verify(shared, claims).await.map_err(Refusal::Told)?),
            Request::Scrub => {
                shared.scrub.begin();
                Response::Scrubbing
            }
            Request::Repair => {
                shared.repair.wake();
                Response::Repairing
            }
            Request::Ping(_) => {
                let (epoch, now_ms) = (self.node.map().epoch, self.environment.clock.unix_ms());
                Response::Pong(Ping { epoch, now_ms })
            }
            Request::Report => {
                let node = self.node.clone();
                Response::Report(self.blocking(move |_| node.report()).await?)
            }
            Request::RetentionPreview(cleanuprange) => {
                let before = retention::first_kept_bucket(cleanuprange, self.environment.clock.unix_ms());
                Response::RetentionPreview(self.blocking(move |store| store.expirable(before)).await?)
            }
        };
        self.respond(send, response).await
    }

    async fn has(&self, names: Vec<BlobName>) -> Result<Response, Refusal> {
        if names.len() > HAS_NAMES_MAX {
            return Err(Refusal::bad_request(format!("{} names are over the limit of {HAS_NAMES_MAX}", names.len())));
        }
        let held = move |store: Store| -> Result<Vec<bool>, EngineError> {
            names.into_iter().map(|name| store.holds(name)).collect()
        };
        Ok(Response::Has(self.blocking(held).await??))
    }

    async fn respond(&self, send: &mut SendHalf, response: Response) -> Result<(), Refusal> {
        self.step("taking the answer", async {
            send.send_message(&response).await?;
            send.finish().await
        })
        .await
    }

    /// One step of the peer's, within the time it has for one.
    async fn step<T>(&self, doing: &str, step: impl Future<Output = Result<T, StreamError>>) -> Result<T, Refusal> {
        self.step_within(PROGRESS_TIMEOUT, doing, step).await
    }

    async fn step_within<T>(
        &self,
        limit: Duration,
        doing: &str,
        step: impl Future<Output = Result<T, StreamError>>,
    ) -> Result<T, Refusal> {
        match self.environment.within(limit, step).await {
            Ok(done) => Ok(done?),
            Err(elapsed) => Err(Refusal::Gone(format!("peer stalled while {doing}: {elapsed}"))),
        }
    }

    /// Runs what blocks, if only shortly, where it holds up nobody.
    async fn blocking<T: Send + 'static>(&self, run: impl FnOnce(Store) -> T + Send + 'static) -> Result<T, Refusal> {
        let done = self.node.shared.blocking(run).await;
        done.ok_or_else(|| Refusal::new(ErrorCode::Internal, "the node failed while reading"))
    }

    /// A share of the body bytes in flight; waits a while for others to free theirs.
    async fn body_share(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Refusal> {
        let busy = || Refusal::new(ErrorCode::Busy, "too many puts are under way, try again");
        // A body is at most HELD_BYTES_MAX, a frame at most FRAME_BYTES_MAX: both fit.
        match self.environment.within(PROGRESS_TIMEOUT, self.body_bytes.acquire_many(bytes as u32)).await {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        match self.node.map().node(self.node.id()).map(|node| node.state) {
            Some(NodeState::Up) => Ok(()),
            Some(NodeState::Draining) => Err(Refusal::new(ErrorCode::Draining, "this node is being drained")),
            None => Err(Refusal::new(ErrorCode::Draining, "this node is no longer in the cluster's map")),
        }
    }

    /// Refuses an administrator's time of deletion or hold that is too far from this node's clock: one in the future would
    /// kill what is put later. Peers pass on times that were checked when they were new.
    fn check_time(&self, role: Role, time_ms: u64) -> Result<(), Refusal> {
        let skew_ms = self.environment.clock.unix_ms().abs_diff(time_ms);
        if role == Role::Peer || skew_ms <= PUT_TIME_SKEW_MAX_MS {
            return Ok(());
        }
        let message =
            format!("the time given is {skew_ms} ms off this node's clock, {PUT_TIME_SKEW_MAX_MS} are allowed");
        Err(Refusal::new(ErrorCode::ClockSkew, message))
    }
}

/// What a client waits for, other than looking at the node.
fn is_work(request: &Request) -> bool {
    matches!(request, Request::Put(_) | Request::PutLocator(_) | Request::Get(_) | Request::Has(_) | Request::Stat(_))
}

/// What clients may ask; the rest is for administrators and peers.
fn check_right(role: Role, request: &Request) -> Result<(), Refusal> {
    match request {
        Request::Hello(_)
        | Request::Put(_)
        | Request::PutLocator(_)
        | Request::Get(_)
        | Request::Has(_)
        | Request::Stat(_)
        | Request::Status
        | Request::Map
        | Request::Ping(_)
        | Request::Report => return Ok(()),
        Request::PushMap(_)
        | Request::Delete(_)
        | Request::RepairDigests(_)
        | Request::RepairItems(_)
        | Request::Scrub
        | Request::Hold(_)
        | Request::Verify(_)
        | Request::Repair
        | Request::RetentionPreview(_) => {}
    }
    match role {
        Role::Admin | Role::Peer => Ok(()),
        Role::Client => {
            let message = format!("{} needs the storage admin key or a node's certificate", name_of(request));
            Err(Refusal::new(ErrorCode::NotAllowed, message))
        }
    }
}

/// What a request is called in messages and metrics.
fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::Put(_) => "put",
        Request::PutLocator(_) => "put_locator",
        Request::Get(_) => "get",
        Request::Has(_) => "has",
        Request::Stat(_) => "stat",
        Request::Status => "status",
        Request::Map => "map",
        Request::PushMap(_) => "push_map",
        Request::Delete(_) => "delete",
        Request::RepairDigests(_) => "repair_digests",
        Request::RepairItems(_) => "repair_items",
        Request::Scrub => "scrub",
        Request::Ping(_) => "ping",
        Request::Hold(_) => "hold",
        Request::Verify(_) => "verify",
        Request::Repair => "repair",
        Request::Report => "report",
        Request::RetentionPreview(_) => "retention_preview",
    }
}

/// Whose put times are taken as they are.
fn origin(role: Role) -> Origin {
    match role {
        Role::Peer => Origin::Peer,
        Role::Client | Role::Admin => Origin::Client,
    }
}
