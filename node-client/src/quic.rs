//! QUIC to nodes: TLS 1.3 against the cluster's CA alone, one connection a node that all requests share, opened once
//! however many wait for it, and the proof of the connection key, which both ends compute here.
//!
//! Invariants: the key never travels, and a proof is worth nothing on another connection, as another role or for another
//! cluster. A node that could not be reached, or refused us, is not tried again for a short while, so that it costs its
//! timeout once and not with every request.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::Shared;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{Hello, KeyProof, Request, Response, Role};
use lazaret_protocol::name::{ClusterId, NodeId};
use tokio::sync::oneshot;

use crate::stream::{RecvHalf, SendHalf};
use crate::tls::{self, TlsError};
use crate::transport::{Transport, TransportError};
use crate::trust::{Complaint, TrustError, TrustFiles, TrustTexts};

/// A node on the same network answers within milliseconds; a handshake is two round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the closing of connections may take: packets leave at once, and a node that lives answers within milliseconds.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a node counts as unreachable after a failed attempt.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a refusal stands before it is asked again: keys and certificates change by hand.
const REFUSED_RETRY_AFTER: Duration = Duration::from_secs(10);

/// The exporter label of the connection key proof.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-lazaret-connection-key";
/// The BLAKE3 context under which a key file's text becomes a MAC key.
const KEY_CONTEXT: &str = "lazaret 2026 connection key proof v1";

/// How often files with keys and certificates are looked at again while connections live. Before a new connection they
/// always are.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// What this end proves its rights with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The connection key: puts and gets.
    Connection(String),
    /// The storage admin key.
    Admin(String),
    /// A node's own certificate and private key.
    Peer {
        /// The certificate chain in PEM.
        certificate_pem: String,
        /// The private key in PEM.
        key_pem: String,
    },
}

impl Credentials {
    fn role(&self) -> Role {
        match self {
            Self::Connection(_) => Role::Client,
            Self::Admin(_) => Role::Admin,
            Self::Peer { .. } => Role::Peer,
        }
    }
}

/// The proof that whoever opened `connection` knows `key`; both ends compute it. `None` if the TLS session cannot export
/// keying material, which an established one always can.
pub fn key_proof(connection: &quinn::Connection, key: &str, role: Role, cluster: ClusterId) -> Option<KeyProof> {
    let mut context = [0; 1 + ClusterId::BYTES];
    context[0] = match role {
        Role::Client => 1,
        Role::Admin => 2,
        Role::Peer => 3,
    };
    context[1..].copy_from_slice(cluster.as_bytes());
    let mut material = [0; 32];
    connection.export_keying_material(&mut material, EXPORTER_LABEL, &context).ok()?;
    let mac_key = blake3::derive_key(KEY_CONTEXT, key.as_bytes());
    Some(*blake3::keyed_hash(&mac_key, &material).as_bytes())
}

/// Streams over QUIC. Must be used inside a tokio runtime.
pub struct QuicTransport {
    shared: Arc<Connector>,
    /// One slot a node and address, so that a node that moved is not looked for where it was.
    slots: Mutex<HashMap<(NodeId, SocketAddr), Slot>>,
}

/// What an attempt to connect needs.
struct Connector {
    trust: RwLock<Arc<Trust>>,
    /// Where the trust was read from, if it was.
    files: Option<TrustFiles>,
    /// When the files were last looked at.
    read_at: Mutex<Instant>,
    complaint: Complaint,
    cluster: ClusterId,
    /// The highest epoch in a `Welcome`.
    epoch_heard: AtomicU64,
    /// A socket a family, bound when first needed: IPv6 may be switched off.
    ipv4: OnceLock<quinn::Endpoint>,
    ipv6: OnceLock<quinn::Endpoint>,
}

/// Whom to trust and what to prove, as last read.
struct Trust {
    texts: TrustTexts,
    tls: quinn::ClientConfig,
    /// Higher by one each time that it changes.
    generation: u64,
}

impl Trust {
    fn new(texts: TrustTexts, generation: u64) -> Result<Self, TlsError> {
        let certificate = texts.credentials.iter().find_map(|credentials| match credentials {
            Credentials::Peer { certificate_pem, key_pem } => Some((certificate_pem.as_str(), key_pem.as_str())),
            Credentials::Connection(_) | Credentials::Admin(_) => None,
        });
        Ok(Self { tls: tls::client_config(&texts.ca, certificate)?, texts, generation })
    }
}

type Attempt = Shared<oneshot::Receiver<Result<quinn::Connection, TransportError>>>;

/// An attempt under way or its outcome, and when it began.
#[derive(Clone)]
struct Slot {
    attempt: Attempt,
    begun: Instant,
    /// The generation of the trust it began with.
    generation: u64,
    /// A connection from before the trust changed. It serves until there is a new one.
    former: Option<quinn::Connection>,
}

impl Slot {
    /// Its connection, if that lives.
    fn living(&self) -> Option<quinn::Connection> {
        match self.attempt.peek() {
            Some(Ok(Ok(connection))) if connection.close_reason().is_none() => Some(connection.clone()),
            _ => self.former.clone().filter(|former| former.close_reason().is_none()),
        }
    }
}

impl QuicTransport {
    /// A transport that trusts `ca_pem` and nothing else. Connects nowhere yet.
    pub fn new(ca_pem: &str, cluster: ClusterId, credentials: Credentials) -> Result<Self, TlsError> {
        Self::with_trust(TrustTexts { ca: ca_pem.to_owned(), credentials: vec![credentials] }, cluster, None)
    }

    /// A transport that takes its trust and its rights from files, and takes note when they change: requests then go over
    /// new connections, and those under way end on the old ones. Reads the files now; connects nowhere yet.
    pub fn from_files(files: TrustFiles, cluster: ClusterId) -> Result<Self, TrustError> {
        Ok(Self::with_trust(files.read()?, cluster, Some(files))?)
    }

    fn with_trust(texts: TrustTexts, cluster: ClusterId, files: Option<TrustFiles>) -> Result<Self, TlsError> {
        let shared = Connector {
            trust: RwLock::new(Arc::new(Trust::new(texts, 0)?)),
            files,
            read_at: Mutex::new(Instant::now()),
            complaint: Complaint::default(),
            cluster,
            epoch_heard: AtomicU64::new(0),
            ipv4: OnceLock::new(),
            ipv6: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared), slots: Mutex::new(HashMap::new()) })
    }

    /// The attempt to join: the one under way, the connection that lives, the failure still fresh, or a new one.
    /// `broken` is a connection the caller has just seen fail.
    fn attempt(&self, node: &NodeEntry, broken: Option<usize>) -> Attempt {
        self.look_at_files_now_and_then();
        let generation = self.shared.trust().generation;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node.id, node.address);
        let mut former = None;
        if let Some(slot) = slots.get(&key) {
            let usable = match slot.attempt.peek() {
                None => true,
                Some(Ok(Ok(connection))) => {
                    connection.close_reason().is_none() && Some(connection.stable_id()) != broken
                }
                Some(Ok(Err(error))) => slot.begun.elapsed() < retry_after(error),
                Some(Err(_)) => false,
            };
            if usable && slot.generation == generation {
                return slot.attempt.clone();
            }
            former = slot.living().filter(|connection| Some(connection.stable_id()) != broken);
        }
        let (done, attempt) = oneshot::channel();
        let (connector, node) = (Arc::clone(&self.shared), node.clone());
        // A task of its own: whoever asked first may give up, and the others still want the connection.
        tokio::spawn(async move {
            let outcome = connector.connect(&node).await;
            if let Err(error) = &outcome {
                tracing::info!(node = %node.id, %error, "no connection to the node");
            }
            // Nobody may be waiting any more.
            let _ = done.send(outcome);
        });
        let attempt = attempt.shared();
        slots.insert(key, Slot { attempt: attempt.clone(), begun: Instant::now(), generation, former });
        attempt
    }

    async fn connection(&self, node: &NodeEntry, broken: Option<usize>) -> Result<quinn::Connection, TransportError> {
        let connected = self.attempt(node, broken).await.unwrap_or_else(|_| {
            Err(TransportError::Failed { address: node.address, reason: "the attempt was abandoned".to_owned() })
        });
        connected.or_else(|error| self.former(node, broken).ok_or(error))
    }

    /// A connection from before the trust changed: new keys that a node does not know yet shut nobody out.
    fn former(&self, node: &NodeEntry, broken: Option<usize>) -> Option<quinn::Connection> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let former = slots.get(&(node.id, node.address))?.former.clone()?;
        (former.close_reason().is_none() && Some(former.stable_id()) != broken).then_some(former)
    }

    fn look_at_files_now_and_then(&self) {
        if self.shared.files.is_none() {
            return;
        }
        let mut read_at = self.shared.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        if read_at.elapsed() >= RELOAD_INTERVAL {
            *read_at = Instant::now();
            let connector = Arc::clone(&self.shared);
            tokio::spawn(async move { connector.reload().await });
        }
    }
}

/// How long an outcome stands, counted from the attempt's beginning.
fn retry_after(error: &TransportError) -> Duration {
    match error {
        TransportError::NotAllowed { .. } | TransportError::Untrusted { .. } | TransportError::WrongNode { .. } => {
            REFUSED_RETRY_AFTER
        }
        TransportError::NoAnswer { .. } => CONNECT_TIMEOUT + RETRY_AFTER,
        _ => RETRY_AFTER,
    }
}

#[async_trait]
impl Transport for QuicTransport {
    async fn open(&self, node: &NodeEntry) -> Result<(SendHalf, RecvHalf), TransportError> {
        let connection = self.connection(node, None).await?;
        let opened = match connection.open_bi().await {
            Ok(opened) => Ok(opened),
            // The node restarted or the connection idled away: one new connection, and what it says stands.
            Err(_) => self.connection(node, Some(connection.stable_id())).await?.open_bi().await,
        };
        let (send, recv) = opened.map_err(|error| connection_error(node.address, &error))?;
        Ok((SendHalf::quic(send), RecvHalf::quic(recv)))
    }

    fn distrust(&self, node: &NodeEntry) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node.id, node.address);
        // Streams on the connection live on; it closes with the last of them.
        if slots.get(&key).is_some_and(|slot| matches!(slot.attempt.peek(), Some(Ok(Ok(_))))) {
            slots.remove(&key);
        }
    }

    fn epoch_heard(&self) -> u64 {
        self.shared.epoch_heard.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        for endpoint in [&self.shared.ipv4, &self.shared.ipv6].into_iter().filter_map(OnceLock::get) {
            endpoint.close(0_u32.into(), b"the client is done");
            // An error means that a node did not answer, which then finds out by itself.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }
}

impl Connector {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again, off the async threads. What cannot be used changes nothing.
    async fn reload(self: Arc<Self>) {
        if self.files.is_none() {
            return;
        }
        // An error means that the runtime is ending.
        let _ = tokio::task::spawn_blocking(move || self.complaint.note(self.reload_blocking())).await;
    }

    fn reload_blocking(&self) -> Result<(), TrustError> {
        let Some(files) = &self.files else { return Ok(()) };
        let texts = files.read()?;
        let mut trust = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        if texts != trust.texts {
            *trust = Arc::new(Trust::new(texts, trust.generation + 1)?);
            tracing::info!("keys and certificates were read anew");
        }
        Ok(())
    }

    /// Connects with the key at hand and, where the node does not know that, with the one before.
    async fn connect(self: Arc<Self>, node: &NodeEntry) -> Result<quinn::Connection, TransportError> {
        Arc::clone(&self).reload().await;
        let trust = self.trust();
        let mut outcome =
            Err(TransportError::NotAllowed { address: node.address, reason: "no key at hand".to_owned() });
        for credentials in &trust.texts.credentials {
            let attempt = self.connect_and_greet(node, &trust.tls, credentials);
            outcome = tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| {
                Err(TransportError::NoAnswer { address: node.address, after_ms: CONNECT_TIMEOUT.as_millis() as u64 })
            });
            if !matches!(outcome, Err(TransportError::NotAllowed { .. })) {
                break;
            }
        }
        outcome
    }

    async fn connect_and_greet(
        &self,
        node: &NodeEntry,
        tls: &quinn::ClientConfig,
        credentials: &Credentials,
    ) -> Result<quinn::Connection, TransportError> {
        let address = node.address;
        let failed = |reason: String| TransportError::Failed { address, reason };
        let connecting = self
            .endpoint(address)?
            .connect_with(tls.clone(), address, &tls::server_name(node.id))
            .map_err(|error| failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| connection_error(address, &error))?;
        match self.greet(node, &connection, credentials).await {
            Ok(()) => Ok(connection),
            Err(error) => {
                connection.close(0_u32.into(), b"");
                Err(error)
            }
        }
    }

    /// Says `Hello` and checks who answers.
    async fn greet(
        &self,
        node: &NodeEntry,
        connection: &quinn::Connection,
        credentials: &Credentials,
    ) -> Result<(), TransportError> {
        let address = node.address;
        let role = credentials.role();
        let proof = match credentials {
            Credentials::Connection(key) | Credentials::Admin(key) => key_proof(connection, key, role, self.cluster),
            Credentials::Peer { .. } => Some([0; 32]),
        };
        let proof = proof.ok_or_else(|| TransportError::Failed {
            address,
            reason: "the TLS session exports no keying material".to_owned(),
        })?;
        let hello = Request::Hello(Hello { cluster: self.cluster, role, proof });
        let answer: Result<Response, String> = async {
            let (send, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
            let (mut send, mut recv) = (SendHalf::quic(send), RecvHalf::quic(recv));
            send.send_message(&hello).await.map_err(|error| error.to_string())?;
            send.finish().await.map_err(|error| error.to_string())?;
            recv.recv_message().await.map_err(|error| error.to_string())
        }
        .await;
        match answer {
            Ok(Response::Welcome(welcome)) if welcome.node == node.id => {
                self.epoch_heard.fetch_max(welcome.epoch, Ordering::Relaxed);
                Ok(())
            }
            Ok(Response::Welcome(welcome)) => Err(TransportError::WrongNode {
                address,
                expected: node.id,
                found: format!("node {} answered", welcome.node),
            }),
            Ok(Response::Error(error)) => Err(TransportError::NotAllowed { address, reason: error.message }),
            Ok(_) => Err(TransportError::Failed { address, reason: "unexpected answer to Hello".to_owned() }),
            // The connection's own reason says more: in TLS 1.3 a node refuses our certificate after the handshake.
            Err(reason) => Err(connection
                .close_reason()
                .map_or_else(|| TransportError::Failed { address, reason }, |error| connection_error(address, &error))),
        }
    }

    fn endpoint(&self, to: SocketAddr) -> Result<&quinn::Endpoint, TransportError> {
        let (endpoint, any) = match to {
            SocketAddr::V4(_) => (&self.ipv4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&self.ipv6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        if let Some(bound) = endpoint.get() {
            return Ok(bound);
        }
        let bound = tls::client_endpoint(any).map_err(|error| TransportError::Socket(error.to_string()))?;
        // Two first attempts at once bind two sockets; the loser's closes again.
        Ok(endpoint.get_or_init(|| bound))
    }
}

/// A connection's failure in this crate's words.
fn connection_error(address: SocketAddr, error: &quinn::ConnectionError) -> TransportError {
    let crypto = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    match error {
        quinn::ConnectionError::TransportError(inner) if crypto(inner.code) => {
            TransportError::Untrusted { address, reason: inner.reason.clone() }
        }
        quinn::ConnectionError::ConnectionClosed(close) if crypto(close.error_code) => {
            TransportError::Untrusted { address, reason: error.to_string() }
        }
        _ => TransportError::Failed { address, reason: error.to_string() },
    }
}
