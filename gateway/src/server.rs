//! HTTP/1.1 over TCP: connections are bounded in number, headers in size and time; shutdown is graceful within a bound.
//!
//! No TLS and no HTTP/2: what stands in front of the gateway does these, or a later listener.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::ClientAddress;
use crate::options::{GatewayOptions, HEADER_BYTES_MAX, HEADERS_MAX, READ_BUFFER_BYTES};

/// How long accepting rests after it failed for want of file descriptors or memory: the next attempt would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then drains.
pub(crate) async fn serve(
    router: Router,
    options: &GatewayOptions,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    // Dropping the set aborts what is left in it, also when this future itself is dropped.
    let mut connections = JoinSet::new();
    let http = http(options);
    tracing::info!(%address, "gateway listens");

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // Finished connections leave the set as they end.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut shutdown => break,
        };
        let Some((stream, address, place)) = accepted else { continue };
        let (routes, address) = (TowerToHyperService::new(router.clone()), ClientAddress(address.to_canonical()));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(address);
            routes.call(request)
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                // The client went away, or sent something that is not HTTP: its own business, for the most part.
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
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

fn http(options: &GatewayOptions) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.header_read_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(READ_BUFFER_BYTES);
    http
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
