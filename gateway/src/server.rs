//! HTTP/1.1, and HTTP/2 where TLS agreed on it: connections are bounded in number, headers in size and time; shutdown is
//! graceful within a bound.

mod refusals;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::refusals::Explained;
use crate::access::ClientAddress;
use crate::metrics::GatewayMetrics;
use crate::options::{GatewayOptions, HEADER_BYTES_MAX, HEADERS_MAX, READ_BUFFER_BYTES};
use crate::tls;

/// How long accepting rests after it failed for want of file descriptors or memory: the next attempt would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 128;
/// What a client may send ahead on a stream and on a connection of HTTP/2, before it is taken from there.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// An HTTP/2 connection on which nothing comes is asked whether it lives, and given up without an answer for as long again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long browsers shall insist on HTTPS: a year (RFC 6797).
const STRICT_TRANSPORT: HeaderValue = HeaderValue::from_static("max-age=31536000");
/// Where a proxy says whom it speaks for.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Serves until `shutdown`, then drains.
pub(crate) async fn serve(
    router: Router,
    options: &GatewayOptions,
    metrics: Arc<GatewayMetrics>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    // Dropping the set aborts what is left in it, also when this future itself is dropped.
    let mut connections = JoinSet::new();
    let door = Arc::new(Door { router, options: options.clone() });
    if let Some(tls) = &options.tls {
        connections.spawn(Arc::clone(tls).follow());
    }
    tracing::info!(%address, tls = options.tls.is_some(), "gateway listens");

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // Finished connections leave the set as they end.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut shutdown => break,
        };
        let Some((stream, address, place)) = accepted else { continue };
        let (door, watcher) = (Arc::clone(&door), graceful.watcher());
        let counted = metrics.connection();
        connections.spawn(async move {
            if let Err(error) = door.serve(stream, address.to_canonical(), watcher).await {
                // The client went away, or sent something that is not HTTP: its own business, for the most part.
                tracing::debug!(%error, "connection ended");
            }
            drop((place, counted));
        });
    }

    drop(listener);
    tracing::info!(connections = graceful.count(), "gateway drains");
    if tokio::time::timeout(options.shutdown_grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_s = options.shutdown_grace.as_secs(), "requests in flight were cut off at shutdown");
    }
    connections.shutdown().await;
    Ok(())
}

/// What each connection is served with.
struct Door {
    router: Router,
    options: GatewayOptions,
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Door {
    async fn serve(&self, stream: TcpStream, address: IpAddr, watcher: Watcher) -> Ended {
        let Some(tls) = &self.options.tls else { return self.http_1(stream, address, watcher).await };
        // A handshake is given the time of a header: whoever takes longer holds a place for nothing.
        let shaking_hands = tls.acceptor().accept(stream);
        let stream = tokio::time::timeout(self.options.header_read_timeout, shaking_hands).await??;
        match stream.get_ref().1.alpn_protocol() {
            Some(tls::HTTP_2) => self.http_2(stream, address, watcher).await,
            _ => self.http_1(stream, address, watcher).await,
        }
    }

    async fn http_1(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: IpAddr,
        watcher: Watcher,
    ) -> Ended {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.options.header_read_timeout)
            .max_headers(HEADERS_MAX)
            .max_header_size(HEADER_BYTES_MAX)
            .max_buf_size(READ_BUFFER_BYTES);
        let stream = Explained::new(stream);
        let (begin, routes) = (stream.begins(), self.service(address));
        let service = service_fn(move |request| {
            let (answering, answer) = (begin(), routes.call(request));
            async move { answer.await.map(|response| response.map(|body| answering.until_the_end_of(body))) }
        });
        Ok(watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await?)
    }

    async fn http_2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: IpAddr,
        watcher: Watcher,
    ) -> Ended {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_INTERVAL);
        Ok(watcher.watch(http.serve_connection(TokioIo::new(stream), self.service(address))).await?)
    }

    /// The routes, told who asks.
    fn service(
        &self,
        peer: IpAddr,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    > + Send
    + 'static {
        let (routes, proxies) = (TowerToHyperService::new(self.router.clone()), self.options.trusted_proxies.clone());
        let strict = self.options.tls.is_some();
        service_fn(move |mut request: Request<Incoming>| {
            let address = spoken_for(peer, request.headers(), &proxies);
            request.extensions_mut().insert(ClientAddress(address));
            let answering = routes.call(request);
            async move {
                let mut response = answering.await?;
                if strict {
                    response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, STRICT_TRANSPORT);
                }
                Ok(response)
            }
        })
    }
}

/// Whom a request comes from: its peer, or, if that is a trusted proxy, the last one in the proxies' own list that is not.
/// What a client wrote into that list stands further to the front.
fn spoken_for(peer: IpAddr, headers: &HeaderMap, proxies: &[IpAddr]) -> IpAddr {
    if !proxies.contains(&peer) {
        return peer;
    }
    let lists: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|list| list.to_str().ok()).collect();
    let mut farthest = peer;
    for name in lists.iter().flat_map(|list| list.split(',')).rev() {
        let Ok(address) = name.trim().parse::<IpAddr>() else { break };
        farthest = address.to_canonical();
        if !proxies.contains(&farthest) {
            break;
        }
    }
    farthest
}

/// The next connection and its place among the bounded number. None when accepting failed.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Answers are small and written whole: waiting for more to send only delays them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            Some((stream, address.ip(), place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trusted_proxy_says_whom_it_speaks_for_and_nobody_else_does() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let proxies = [ip("10.0.0.1"), ip("10.0.0.2")];
        let seen = |peer: &str, lists: &[&str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(FORWARDED_FOR, list.parse().unwrap());
            }
            spoken_for(ip(peer), &headers, &proxies)
        };
        assert_eq!(seen("192.0.2.9", &["198.51.100.1"]), ip("192.0.2.9"), "anybody can write a header");
        assert_eq!(seen("10.0.0.1", &[]), ip("10.0.0.1"));
        assert_eq!(seen("10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(
            seen("10.0.0.1", &["203.0.113.5, 198.51.100.1, 10.0.0.2"]),
            ip("198.51.100.1"),
            "the last untrusted"
        );
        assert_eq!(
            seen("10.0.0.1", &["203.0.113.5", "198.51.100.1"]),
            ip("198.51.100.1"),
            "several headers are one list"
        );
        assert_eq!(seen("10.0.0.1", &["198.51.100.1, nonsense"]), ip("10.0.0.1"));
        assert_eq!(seen("10.0.0.1", &["::ffff:198.51.100.1"]), ip("198.51.100.1"));
    }
}
