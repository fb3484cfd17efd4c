//! TLS and QUIC settings, the same at both ends. aws-lc-rs is handed over explicitly everywhere: nothing global is
//! installed, so no other crate's choice can change it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::Duration;

use lazaret_protocol::name::NodeId;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};

use crate::restart::{RandomConnectionIds, ResetKey};

/// The protocol's name in the TLS handshake; another major version of the wire takes another.
const ALPN: &[u8] = b"lazaret/1";

/// What one stream may have under way: several times the bandwidth-delay product of a local network, so that a put never
/// waits for window updates.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// What one connection may have under way, over all its streams: the bound of what a peer makes us buffer.
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// Requests under way on one connection.
const STREAMS_MAX: u32 = 1024;
/// The round trip that a new connection is taken to have until it was measured: a first packet that met a node not yet there
/// is sent again after three of them, and not after a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Keeps a connection from idling away, and NAT entries alive.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Three keep-alives unanswered: the peer is gone.
const IDLE_TIMEOUT_MS: u32 = 15_000;
/// Largest datagram that path discovery tries; it starts small, so an Ethernet path just stays at its own 1,500. On
/// loopback and jumbo frames it halves the cost of a byte. Ten of them (what one GSO send holds) stay under the kernel's
/// 65,507 bytes.
const DATAGRAM_BYTES_MAX: u16 = 6000;

/// What a socket may have received and not handed over: every peer's bursts meanwhile. Where the kernel allows less, what does not fit
/// is lost and sent again, by a sender that has become careful.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Why certificates, keys or sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Text that is not PEM, or holds nothing of what was looked for.
    #[error("{what}: not a PEM file with {expected}: {reason}")]
    Pem {
        /// Which file.
        what: &'static str,
        /// What should be in it.
        expected: &'static str,
        /// What was found.
        reason: String,
    },
    /// Certificate and key do not fit together, or TLS refuses them.
    #[error("{what}: {source}")]
    Tls {
        /// Which.
        what: &'static str,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The CA cannot verify clients.
    #[error("the cluster CA cannot verify certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The crypto library lacks QUIC's initial cipher suite.
    #[error("TLS offers no cipher suite for QUIC: {0}")]
    Suite(#[from] NoInitialCipherSuite),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (UDP): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The DNS name in the certificate of `node`.
pub fn server_name(node: NodeId) -> String {
    format!("{node}.node.lazaret")
}

/// What a node needs to accept connections: clients without a certificate, and peers with one of `ca_pem`, which may hold
/// several.
pub fn server_config(certificate_pem: &str, key_pem: &str, ca_pem: &str) -> Result<quinn::ServerConfig, TlsError> {
    let what = "node certificate and key";
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Tls { what, source })?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("node certificate", certificate_pem)?, private_key(key_pem)?)
        .map_err(|source| TlsError::Tls { what, source })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    server.transport_config(transport_config());
    Ok(server)
}

/// An endpoint that accepts connections as [`server_config`] says. The port may be 0. Needs a tokio runtime.
pub fn server_endpoint(
    address: SocketAddr,
    certificate_pem: &str,
    key_pem: &str,
    ca_pem: &str,
) -> Result<quinn::Endpoint, TlsError> {
    let server = server_config(certificate_pem, key_pem, ca_pem)?;
    // Should the key be replaced while this endpoint lives, clients notice its next restart a little later.
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey::of(key_pem)));
    config.cid_generator(|| Box::new(RandomConnectionIds));
    endpoint(address, config, Some(server)).map_err(|source| TlsError::Bind { address, source })
}

/// Whether whoever trusts `ca_pem` takes this certificate for `node`'s: before it replaces one that works.
pub fn verify_node_certificate(ca_pem: &str, certificate_pem: &str, node: NodeId) -> Result<(), TlsError> {
    let what = "node certificate";
    let chain = certificates(what, certificate_pem)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider()).build()?;
    let refused = |source| TlsError::Tls { what, source };
    let name =
        ServerName::try_from(server_name(node)).map_err(|error| refused(rustls::Error::General(error.to_string())))?;
    let Some((leaf, intermediates)) = chain.split_first() else { return Ok(()) };
    verifier.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::now()).map(|_| ()).map_err(refused)
}

/// A client's configuration that trusts `ca_pem` alone and presents `certificate` (chain and key), if any.
pub(crate) fn client_config(ca_pem: &str, certificate: Option<(&str, &str)>) -> Result<quinn::ClientConfig, TlsError> {
    let what = "client certificate and key";
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Tls { what, source })?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(certificates("client certificate", chain)?, private_key(key)?)
            .map_err(|source| TlsError::Tls { what, source })?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    client.transport_config(transport_config());
    Ok(client)
}

/// An endpoint for outgoing connections. Needs a tokio runtime.
pub(crate) fn client_endpoint(address: SocketAddr) -> io::Result<quinn::Endpoint> {
    endpoint(address, quinn::EndpointConfig::default(), None)
}

/// A socket at `address` and the QUIC endpoint on it.
fn endpoint(
    address: SocketAddr,
    mut config: quinn::EndpointConfig,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    // The peer discovers no larger datagrams than we say we take. Fails only under QUIC's own minimum of 1,200.
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    let socket = UdpSocket::bind(address)?;
    enlarge_buffers(&socket);
    quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
}

/// Gives a socket the buffers that the kernel allows, and says once if that is less than it should be.
fn enlarge_buffers(socket: &UdpSocket) {
    static SAID: Once = Once::new();
    let socket = socket2::SockRef::from(socket);
    let asked = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).and_then(|()| {
        // What one call sends has to fit as well.
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.recv_buffer_size()
    });
    match asked {
        Ok(granted) if granted >= SOCKET_BUFFER_BYTES => {}
        Ok(granted) => SAID.call_once(|| {
            let wanted = SOCKET_BUFFER_BYTES;
            tracing::warn!(
                granted,
                wanted,
                "UDP sockets get smaller buffers than storage traffic needs under load: \
                 raise net.core.rmem_max and net.core.wmem_max"
            );
        }),
        Err(error) => SAID.call_once(|| tracing::warn!(%error, "the buffers of UDP sockets stay as they are")),
    }
}

fn transport_config() -> Arc<quinn::TransportConfig> {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    let mut config = quinn::TransportConfig::default();
    config
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(quinn::VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .mtu_discovery_config(Some(discovery));
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("cluster CA", ca_pem)? {
        roots.add(certificate).map_err(|source| TlsError::Tls { what: "cluster CA", source })?;
    }
    Ok(roots)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem_error = |reason: String| TlsError::Pem { what, expected: "a certificate", reason };
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error(error.to_string()))?;
    if chain.is_empty() { Err(pem_error("none found".to_owned())) } else { Ok(chain) }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::Pem {
        what: "private key",
        expected: "a private key",
        reason: error.to_string(),
    })
}
