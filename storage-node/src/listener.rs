//! Takes QUIC connections for a [`NodeService`]: each begins with a `Hello` that proves its role, then every stream is a
//! request with that role's rights.
//!
//! Invariants: nothing is served before the proof; connections are bounded, and so is the time that one may take to prove
//! itself. The keys are compared as MACs over the TLS session, in constant time, and appear in no message and no log.
//!
//! Keys and certificates in files are read again before a connection is judged and every few seconds besides. A connection
//! whose key is no longer good is closed once its requests have ended, so that whoever knows the new key loses none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lazaret_node_client::cluster_file::{ClusterFileError, read_text};
use lazaret_node_client::quic::key_proof;
use lazaret_node_client::stream::{RecvHalf, SendHalf};
use lazaret_node_client::tls::{self, TlsError};
use lazaret_node_client::trust::{Complaint, Keys, TrustError};
use lazaret_protocol::message::{ErrorCode, ErrorReply, Hello, Request, Response, Role};
use lazaret_protocol::name::ClusterId;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::service::NodeService;

/// Connections at once: a few for each node and client of the largest cluster. Beyond it new ones are refused.
const CONNECTIONS_MAX: usize = 4096;
/// Handshake, `Hello` and its proof: a few round trips.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refused peer has to take the reason.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long requests under way may go on once the node is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often files with keys and certificates are looked at while nobody connects.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// A file that was read so recently is not read again for a new connection: peers that connect in a flood earn nothing.
const RELOAD_PAUSE: Duration = Duration::from_millis(20);
/// How long requests may go on over a connection whose key is no longer good.
const RETIRED_TIMEOUT: Duration = Duration::from_secs(60);

/// QUIC's application error codes when this end closes a connection; the reason beside them says the same in words.
const CLOSED_STOPPING: u32 = 0;
const CLOSED_REFUSED: u32 = 1;

/// A bound UDP socket that accepts connections.
pub struct Listener {
    endpoint: quinn::Endpoint,
    gate: Arc<Gate>,
}

/// Where a node's keys and certificates lie. Beside a key file there may be the key before, as
/// [`lazaret_node_client::trust::previous_key_path`] names it.
#[derive(Debug, Clone)]
pub struct ListenerFiles {
    /// The node's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
    /// The cluster CA's certificates.
    pub ca: PathBuf,
    /// The connection key.
    pub connection_key: PathBuf,
    /// The storage admin key, if the node knows it.
    pub admin_key: Option<PathBuf>,
}

/// What the files say.
#[derive(Clone, PartialEq, Eq)]
struct Texts {
    certificate: String,
    private_key: String,
    ca: String,
    connection_keys: Keys,
    admin_keys: Option<Keys>,
}

impl ListenerFiles {
    fn read(&self) -> Result<Texts, ClusterFileError> {
        Ok(Texts {
            certificate: read_text("node certificate", &self.certificate)?,
            private_key: read_text("node private key", &self.private_key)?,
            ca: read_text("cluster CA", &self.ca)?,
            connection_keys: Keys::read("connection key", &self.connection_key)?,
            admin_keys: self.admin_key.as_deref().map(|path| Keys::read("storage admin key", path)).transpose()?,
        })
    }
}

/// Whom the node lets in, as last read.
struct Trust {
    texts: Texts,
    tls: Arc<quinn::ServerConfig>,
}

impl Trust {
    fn new(texts: Texts) -> Result<Self, TlsError> {
        let tls = Arc::new(tls::server_config(&texts.certificate, &texts.private_key, &texts.ca)?);
        Ok(Self { texts, tls })
    }

    /// Whether what `pass` was given for is still good.
    fn admits(&self, pass: &Pass) -> bool {
        match pass {
            Pass::Peer { ca } => self.texts.ca == *ca,
            Pass::Client { key } => self.texts.connection_keys.iter().any(|good| good == key),
            Pass::Admin { key } => self.texts.admin_keys.iter().flat_map(Keys::iter).any(|good| good == key),
        }
    }
}

/// For what a connection was let in.
enum Pass {
    /// A certificate of these CAs.
    Peer { ca: String },
    /// This connection key.
    Client { key: String },
    /// This storage admin key.
    Admin { key: String },
}

impl Pass {
    fn role(&self) -> Role {
        match self {
            Self::Peer { .. } => Role::Peer,
            Self::Client { .. } => Role::Client,
            Self::Admin { .. } => Role::Admin,
        }
    }
}

/// What decides who may enter.
struct Gate {
    cluster: ClusterId,
    trust: watch::Sender<Arc<Trust>>,
    /// Where the trust was read from, if it was.
    files: Option<ListenerFiles>,
    /// When the files were last looked at.
    read_at: Mutex<Option<Instant>>,
    complaint: Complaint,
    service: NodeService,
}

impl Listener {
    /// Binds `address` (UDP; port 0 takes a free one). Certificate and key are the node's own; connections are accepted
    /// from clients that know a key, and from peers with a certificate of `ca_pem`. Needs a tokio runtime.
    #[allow(clippy::too_many_arguments)]
    pub fn bind(
        address: SocketAddr,
        certificate_pem: &str,
        key_pem: &str,
        ca_pem: &str,
        cluster: ClusterId,
        connection_key: String,
        admin_key: Option<String>,
        service: NodeService,
    ) -> Result<Self, TlsError> {
        let texts = Texts {
            certificate: certificate_pem.to_owned(),
            private_key: key_pem.to_owned(),
            ca: ca_pem.to_owned(),
            connection_keys: Keys::one(connection_key),
            admin_keys: admin_key.map(Keys::one),
        };
        Self::bind_with(address, texts, None, cluster, service)
    }

    /// The same with keys and certificates from files, which may change while the listener runs.
    pub fn bind_files(
        address: SocketAddr,
        files: ListenerFiles,
        cluster: ClusterId,
        service: NodeService,
    ) -> Result<Self, TrustError> {
        Ok(Self::bind_with(address, files.read()?, Some(files), cluster, service)?)
    }

    fn bind_with(
        address: SocketAddr,
        texts: Texts,
        files: Option<ListenerFiles>,
        cluster: ClusterId,
        service: NodeService,
    ) -> Result<Self, TlsError> {
        let endpoint = tls::server_endpoint(address, &texts.certificate, &texts.private_key, &texts.ca)?;
        let trust = watch::Sender::new(Arc::new(Trust::new(texts)?));
        let (read_at, complaint) = (Mutex::new(None), Complaint::default());
        Ok(Self { endpoint, gate: Arc::new(Gate { cluster, trust, files, read_at, complaint, service }) })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves until `shutdown` completes, then takes nothing new and gives what is under way a while to end. The
    /// socket closes shortly after this returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut reload = tokio::time::interval(RELOAD_INTERVAL);
        loop {
            let incoming = tokio::select! {
                biased;
                () = &mut shutdown => break,
                _ = reload.tick() => {
                    tokio::spawn(Arc::clone(&self.gate).reload());
                    continue;
                }
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            if self.endpoint.open_connections() > CONNECTIONS_MAX {
                tracing::warn!(peer = %incoming.remote_address(), "connection refused: {CONNECTIONS_MAX} are open");
                incoming.refuse();
                continue;
            }
            let gate = Arc::clone(&self.gate);
            tokio::spawn(async move {
                let peer = incoming.remote_address();
                if let Err(reason) = Arc::clone(&gate).serve_connection(incoming).await {
                    tracing::info!(%peer, reason, "connection refused");
                }
            });
        }
        self.endpoint.set_server_config(None);
        if tokio::time::timeout(DRAIN_TIMEOUT, self.gate.service.idle()).await.is_err() {
            tracing::warn!("requests were still under way when the node stopped");
        }
        self.endpoint.close(CLOSED_STOPPING.into(), b"the node is stopping");
        // Lets the closing packets leave; bounded, since a peer may be gone.
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Gate {
    /// Serves a connection to its end; an error says why it never began.
    async fn serve_connection(self: Arc<Self>, incoming: quinn::Incoming) -> Result<(), String> {
        let mut trust = self.trust.subscribe();
        let begun = async {
            Arc::clone(&self).reload_for_newcomer().await;
            let tls = Arc::clone(&trust.borrow_and_update().tls);
            let connecting = incoming.accept_with(tls).map_err(|error| error.to_string())?;
            let connection = connecting.await.map_err(|error| error.to_string())?;
            let pass = self.admit(&connection).await?;
            Ok::<_, String>((connection, pass))
        };
        let (connection, pass) =
            tokio::time::timeout(HELLO_TIMEOUT, begun).await.map_err(|_| "no Hello in time".to_owned())??;
        self.serve_streams(&connection, &pass, trust).await;
        Ok(())
    }

    /// Serves streams until the peer closes or is gone, or until its pass is no longer good and its requests have ended. The
    /// bound on streams is QUIC's.
    async fn serve_streams(&self, connection: &quinn::Connection, pass: &Pass, mut trust: watch::Receiver<Arc<Trust>>) {
        let mut requests = JoinSet::new();
        let mut retired = !trust.borrow_and_update().admits(pass);
        let mut end = tokio::time::Instant::now() + RETIRED_TIMEOUT;
        while !(retired && requests.is_empty()) {
            tokio::select! {
                accepted = connection.accept_bi() => {
                    let Ok((send, recv)) = accepted else { break };
                    let (service, role) = (self.service.clone(), pass.role());
                    // Boxed: tokio moves what it runs several times, and this is kilobytes.
                    requests.spawn(Box::pin(async move {
                        service.handle(role, SendHalf::quic(send), RecvHalf::quic(recv)).await;
                    }));
                }
                Some(_) = requests.join_next() => {}
                // `self` holds the sender, so waiting cannot fail.
                _ = trust.changed(), if !retired => {
                    retired = !trust.borrow_and_update().admits(pass);
                    end = tokio::time::Instant::now() + RETIRED_TIMEOUT;
                }
                () = tokio::time::sleep_until(end), if retired => break,
            }
        }
        if retired {
            connection.close(CLOSED_REFUSED.into(), b"the key or certificate of this connection is no longer good");
        }
        // What is under way learns from its stream that the peer is gone.
        requests.detach_all();
    }

    /// Reads the files again unless that was done this very moment.
    async fn reload_for_newcomer(self: Arc<Self>) {
        let read_at = *self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        if read_at.is_none_or(|at| at.elapsed() >= RELOAD_PAUSE) {
            self.reload().await;
        }
    }

    /// Reads the files again, off the async threads. What cannot be used changes nothing.
    async fn reload(self: Arc<Self>) {
        if self.files.is_none() {
            return;
        }
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // An error means that the runtime is ending.
        let _ = tokio::task::spawn_blocking(move || self.complaint.note(self.reload_blocking())).await;
    }

    fn reload_blocking(&self) -> Result<(), TrustError> {
        let Some(files) = &self.files else { return Ok(()) };
        let texts = files.read()?;
        if self.trust.borrow().texts == texts {
            return Ok(());
        }
        self.trust.send_replace(Arc::new(Trust::new(texts)?));
        tracing::info!("keys and certificates were read anew");
        Ok(())
    }

    /// Takes the first stream and decides the connection's role. A refused peer is told why.
    async fn admit(self: &Arc<Self>, connection: &quinn::Connection) -> Result<Pass, String> {
        let (send, recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
        let (mut send, mut recv) = (SendHalf::quic(send), RecvHalf::quic(recv));
        let judged = match recv.recv_message::<Request>().await {
            Ok(Request::Hello(hello)) => match self.judge(connection, &hello) {
                Ok(pass) => Ok(pass),
                // The key may be newer than what was read.
                Err(_) => {
                    Arc::clone(self).reload().await;
                    self.judge(connection, &hello)
                }
            },
            Ok(_) => Err((ErrorCode::BadRequest, "a connection begins with Hello".to_owned())),
            Err(error) => Err((ErrorCode::BadRequest, format!("a connection begins with Hello: {error}"))),
        };
        let answer = match &judged {
            Ok(_) => Response::Welcome(self.service.welcome()),
            Err((code, message)) => Response::Error(ErrorReply { code: *code, message: message.clone() }),
        };
        send.send_message(&answer).await.map_err(|error| error.to_string())?;
        send.finish().await.map_err(|error| error.to_string())?;
        match judged {
            Ok(pass) => Ok(pass),
            Err((_, message)) => {
                // Closing discards what the peer has not received yet.
                let _ = tokio::time::timeout(REFUSAL_TIMEOUT, send.delivered()).await;
                connection.close(CLOSED_REFUSED.into(), message.as_bytes());
                Err(message)
            }
        }
    }

    fn judge(&self, connection: &quinn::Connection, hello: &Hello) -> Result<Pass, (ErrorCode, String)> {
        let refuse = |message: &str| Err((ErrorCode::NotAllowed, message.to_owned()));
        if hello.cluster != self.cluster {
            return refuse("this node belongs to another cluster; check the cluster file");
        }
        let trust = Arc::clone(&self.trust.borrow());
        let keys = match hello.role {
            // TLS has verified whatever certificate there is against the cluster's CA.
            Role::Peer if connection.peer_identity().is_some() => {
                return Ok(Pass::Peer { ca: trust.texts.ca.clone() });
            }
            Role::Peer => return refuse("a peer presents a node's certificate of the cluster's CA"),
            Role::Client => &trust.texts.connection_keys,
            Role::Admin => match &trust.texts.admin_keys {
                Some(keys) => keys,
                None => return refuse("this node has no storage admin key"),
            },
        };
        let proven = keys.iter().find(|key| {
            // blake3's hashes compare in constant time.
            key_proof(connection, key, hello.role, hello.cluster)
                .is_some_and(|proof| blake3::Hash::from_bytes(proof) == blake3::Hash::from_bytes(hello.proof))
        });
        match (proven, hello.role) {
            (Some(key), Role::Admin) => Ok(Pass::Admin { key: key.to_owned() }),
            (Some(key), _) => Ok(Pass::Client { key: key.to_owned() }),
            (None, Role::Admin) => refuse("wrong storage admin key"),
            (None, _) => refuse("wrong connection key"),
        }
    }
}
