//! What can be set on a gateway, with the defaults and their reasons.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lazaret_analysis::Rules;
use lazaret_digests::Selection;
use lazaret_protocol::limits::MIB;

use crate::callbacks::CallbackOptions;
use crate::outbound::OutboundOptions;
use crate::rate::RateLimits;
use crate::signer::Signer;
use crate::tls::Tls;

/// Longest header block of a request. Sixteen passwords, metadata and a long percent-encoded name fit many times over.
pub(crate) const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Most header fields of one request.
pub(crate) const HEADERS_MAX: usize = 128;
/// Most bytes that are read from a connection before they are handed on: the length of a body piece at most.
pub(crate) const READ_BUFFER_BYTES: usize = 256 * 1024;
/// How long a request other than an upload may take. Such requests only query the results; one that takes longer is
/// waiting on something broken.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest upload that is let go on, as an average over what has come so far. Slower ones would hold their place in the
/// budget for hours at the cost of a byte now and then.
pub(crate) const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 4 * 1024;

/// The settings of a [`crate::Gateway`].
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Memory that uploads in flight may take together, in bytes. An upload past it is answered 503. Default 512 MiB:
    /// about 60 large uploads at once, on a machine of 2 GiB or more.
    pub inflight_bytes_max: u64,
    /// Uploads in flight at once, whatever their size. Default 1,024: small files are bounded by count, not by memory.
    pub inflight_uploads_max: usize,
    /// Submissions that wait for workers; past it further ones are answered 503. 0: any number. Default 100,000: hours of
    /// work for most stations, and a queue that still is counted in some 20 ms.
    pub queue_max: u64,
    /// How fast one key may submit. Default: as fast as it likes.
    pub rate_limits: RateLimits,
    /// Connections at once; past it new ones wait in the kernel's backlog. Default 4,096, below the usual limit of open
    /// files when each upload holds streams to storage nodes as well.
    pub connections_max: usize,
    /// How long a client may take to send a request's header. It bounds idle keep-alive connections too. Default 30 s.
    pub header_read_timeout: Duration,
    /// How long an upload may go without a byte before it is given up. Default 30 s.
    pub body_idle_timeout: Duration,
    /// How long uploads in flight may go on once shutdown was asked for. Default 30 s.
    pub shutdown_grace: Duration,
    /// The rules (workflows) that submissions choose from. They may be replaced while the gateway runs.
    pub rules: Rules,
    /// Whether whoever has no key may submit files and read their results by id. Default no.
    pub anonymous: bool,
    /// The digests that are computed of each upload, besides BLAKE3.
    pub digests: Selection,
    /// Whom files may be fetched from, and how. Default: nobody.
    pub downloads: OutboundOptions,
    /// Whom finished analyses may be told to. Default: nobody.
    pub callbacks: Option<CallbackOptions>,
    /// How long finished analyses are kept. Default: for good.
    pub history: Option<Duration>,
    /// What signs the results of batches. Without it there are no certificates.
    pub signer: Option<Arc<Signer>>,
    /// The certificate under which HTTPS is spoken; none for plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Addresses of proxies that are believed whom they speak for.
    pub trusted_proxies: Vec<IpAddr>,
    /// What GET /version answers.
    pub version: String,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            inflight_bytes_max: 512 * MIB,
            inflight_uploads_max: 1024,
            queue_max: 100_000,
            rate_limits: RateLimits::default(),
            connections_max: 4096,
            header_read_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(30),
            rules: Rules::default(),
            anonymous: false,
            digests: Selection::default(),
            downloads: OutboundOptions::default(),
            callbacks: None,
            history: None,
            signer: None,
            tls: None,
            trusted_proxies: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
