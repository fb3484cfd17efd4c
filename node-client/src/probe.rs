//! What QUIC with this crate's settings carries between two sockets of one process, and nothing else: the limit against
//! which the store's own figures are read.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_protocol::name::NodeId;

use crate::tls::{self, TlsError};

/// What is written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Chunks read at once, as streams do.
const CHUNKS_AT_ONCE: usize = 32;

/// Bytes a second over one connection on the loopback address, on so many streams at once, both ends in this process. The
/// certificate is that of `node`.
pub async fn loopback_bytes_per_second(
    node: NodeId,
    ca_pem: &str,
    certificate_pem: &str,
    key_pem: &str,
    streams: usize,
    duration: Duration,
) -> Result<f64, ProbeError> {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = tls::server_endpoint(anywhere, certificate_pem, key_pem, ca_pem)?;
    let address = server.local_addr().map_err(failed)?;
    let client = tls::client_endpoint(anywhere).map_err(failed)?;
    let connecting =
        client.connect_with(tls::client_config(ca_pem, None)?, address, &tls::server_name(node)).map_err(failed)?;
    let accepting = async {
        match server.accept().await {
            Some(incoming) => incoming.await.map_err(failed),
            None => Err(ProbeError("the endpoint is closed".to_owned())),
        }
    };
    let (connection, accepted) = tokio::try_join!(async { connecting.await.map_err(failed) }, accepting)?;
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let receiving = tokio::spawn(async move {
        while let Ok((_answer, stream)) = accepted.accept_bi().await {
            tokio::spawn(drain(stream, Arc::clone(&counter)));
        }
    });
    for _ in 0..streams {
        let (mut send, _receive) = connection.open_bi().await.map_err(failed)?;
        tokio::spawn(async move {
            let piece = Bytes::from(vec![0x5a; PIECE_BYTES]);
            while send.write_chunk(piece.clone()).await.is_ok() {}
        });
    }
    // The path's largest datagrams are found within the first moments.
    tokio::time::sleep(duration / 4).await;
    let (before, began) = (received.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(duration).await;
    let rate = (received.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    connection.close(0_u32.into(), b"measured");
    server.close(0_u32.into(), b"measured");
    receiving.abort();
    Ok(rate)
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[error("QUIC over loopback could not be measured: {0}")]
pub struct ProbeError(String);

impl From<TlsError> for ProbeError {
    fn from(error: TlsError) -> Self {
        Self(error.to_string())
    }
}

fn failed(error: impl std::fmt::Display) -> ProbeError {
    ProbeError(error.to_string())
}

async fn drain(mut stream: quinn::RecvStream, received: Arc<AtomicU64>) {
    let mut chunks = vec![Bytes::new(); CHUNKS_AT_ONCE];
    while let Ok(Some(count)) = stream.read_chunks(&mut chunks).await {
        let bytes: usize = chunks.iter().take(count).map(Bytes::len).sum();
        received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
