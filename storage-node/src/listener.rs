//! Takes QUIC connections for a [`NodeService`]: each begins with a `Hello` that proves its role, then every stream is a
//! request with that role's rights.
//!
//! Invariants: nothing is served before the proof; connections are bounded, and so is the time that one may take to prove
//! itself. The keys are compared as MACs over the TLS session, in constant time, and appear in no message and no log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lazaret_node_client::quic::key_proof;
use lazaret_node_client::stream::{RecvHalf, SendHalf};
use lazaret_node_client::tls::{self, TlsError};
use lazaret_protocol::message::{ErrorCode, ErrorReply, Hello, Request, Response, Role};
use lazaret_protocol::name::ClusterId;

use crate::service::NodeService;

/// Connections at once: a few for each node and client of the largest cluster. Beyond it new ones are refused.
const CONNECTIONS_MAX: usize = 4096;
/// Handshake, `Hello` and its proof: a few round trips.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refused peer has to take the reason.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long requests under way may go on once the node is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// QUIC's application error codes when this end closes a connection; the reason beside them says the same in words.
const CLOSED_STOPPING: u32 = 0;
const CLOSED_REFUSED: u32 = 1;

/// A bound UDP socket that accepts connections.
pub struct Listener {
    endpoint: quinn::Endpoint,
    gate: Arc<Gate>,
}

/// What decides who may enter.
struct Gate {
    cluster: ClusterId,
    connection_key: String,
    admin_key: Option<String>,
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
        let endpoint = tls::server_endpoint(address, certificate_pem, key_pem, ca_pem)?;
        Ok(Self { endpoint, gate: Arc::new(Gate { cluster, connection_key, admin_key, service }) })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves until `shutdown` completes, then takes nothing new and gives what is under way a while to end. The
    /// socket closes shortly after this returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let incoming = tokio::select! {
                biased;
                () = &mut shutdown => break,
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
                if let Err(reason) = gate.serve_connection(incoming).await {
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
    async fn serve_connection(&self, incoming: quinn::Incoming) -> Result<(), String> {
        let begun = async {
            let connection = incoming.await.map_err(|error| error.to_string())?;
            let role = self.admit(&connection).await?;
            Ok::<_, String>((connection, role))
        };
        let (connection, role) =
            tokio::time::timeout(HELLO_TIMEOUT, begun).await.map_err(|_| "no Hello in time".to_owned())??;
        // Ends when the peer closes or is gone; the bound on streams is QUIC's.
        while let Ok((send, recv)) = connection.accept_bi().await {
            let service = self.service.clone();
            tokio::spawn(async move { service.handle(role, SendHalf::quic(send), RecvHalf::quic(recv)).await });
        }
        Ok(())
    }

    /// Takes the first stream and decides the connection's role. A refused peer is told why.
    async fn admit(&self, connection: &quinn::Connection) -> Result<Role, String> {
        let (send, recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
        let (mut send, mut recv) = (SendHalf::quic(send), RecvHalf::quic(recv));
        let judged = match recv.recv_message::<Request>().await {
            Ok(Request::Hello(hello)) => self.judge(connection, &hello),
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
            Ok(role) => Ok(role),
            Err((_, message)) => {
                // Closing discards what the peer has not received yet.
                let _ = tokio::time::timeout(REFUSAL_TIMEOUT, send.delivered()).await;
                connection.close(CLOSED_REFUSED.into(), message.as_bytes());
                Err(message)
            }
        }
    }

    fn judge(&self, connection: &quinn::Connection, hello: &Hello) -> Result<Role, (ErrorCode, String)> {
        let refuse = |message: &str| Err((ErrorCode::NotAllowed, message.to_owned()));
        if hello.cluster != self.cluster {
            return refuse("this node belongs to another cluster; check the cluster file");
        }
        let key = match hello.role {
            // TLS has verified whatever certificate there is against the cluster's CA.
            Role::Peer if connection.peer_identity().is_some() => return Ok(Role::Peer),
            Role::Peer => return refuse("a peer presents a node's certificate of the cluster's CA"),
            Role::Client => &self.connection_key,
            Role::Admin => match &self.admin_key {
                Some(key) => key,
                None => return refuse("this node has no storage admin key"),
            },
        };
        let expected = key_proof(connection, key, hello.role, hello.cluster);
        // blake3's hashes compare in constant time.
        match expected {
            Some(proof) if blake3::Hash::from_bytes(proof) == blake3::Hash::from_bytes(hello.proof) => Ok(hello.role),
            _ if hello.role == Role::Admin => refuse("wrong storage admin key"),
            _ => refuse("wrong connection key"),
        }
    }
}
