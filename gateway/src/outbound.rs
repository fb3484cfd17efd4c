//! Requests that the gateway sends because a client named a URL: a file to fetch, a callback to make.
//!
//! Such a URL is a client's way to make the gateway talk to whatever the gateway can reach, so:
//!
//! - Nothing is asked of a host that the operator has not listed. Lists are empty by default.
//! - Every address that the host's name resolves to must be a public one, unless the operator says otherwise, and the
//!   connection goes to an address that was checked: the name is not resolved again.
//! - A redirect is a new URL and is checked like one. From https there is no way back to http.
//! - No proxy of the environment is used, no credentials of a URL, no cookies.
//! - Bytes and time are bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use reqwest::{Client, Method, Response, Url, redirect};

/// Redirects that are followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Addresses of one name that are looked at; a name with more is nobody's file server.
const ADDRESSES_MAX: usize = 64;
/// How long a connection may take to come about.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest URL that is taken.
const URL_CHARS_MAX: usize = 4096;

/// What the gateway may ask of whom.
#[derive(Debug, Clone)]
pub struct OutboundOptions {
    /// Hosts that may be asked: `files.example`, with a port `files.example:8443`, or all below a domain `*.example`. None: no
    /// host is.
    pub hosts: Vec<String>,
    /// Whether addresses that are not public (loopback, private, link-local) may be asked too.
    pub private_addresses: bool,
    /// How long one request may take, from its beginning to the last byte of its answer.
    pub time_max: Duration,
    /// The longest answer.
    pub bytes_max: u64,
}

impl Default for OutboundOptions {
    fn default() -> Self {
        Self { hosts: Vec::new(), private_addresses: false, time_max: Duration::from_secs(300), bytes_max: 4 << 30 }
    }
}

/// Why a request was not made, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The URL is none that is asked.
    #[error("the URL is refused: {0}")]
    Refused(String),
    /// The name has no address.
    #[error("the host {host:?} cannot be found: {source}")]
    Lookup {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// The host was not reached, or broke off.
    #[error("the host {host:?} did not answer")]
    Failed {
        /// The name.
        host: String,
        /// Why not, without the URL.
        source: reqwest::Error,
    },
    /// The host answered, and not with what was asked for.
    #[error("the host {host:?} answered {status}")]
    Status {
        /// The name.
        host: String,
        /// Its status.
        status: u16,
    },
}

impl OutboundError {
    /// Whether the same URL will be refused again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// A URL that may be asked, as far as can be told without resolving its name.
pub(crate) fn checked_url(options: &OutboundOptions, text: &str) -> Result<Url, OutboundError> {
    let refused = |reason: &str| OutboundError::Refused(reason.to_owned());
    if text.len() > URL_CHARS_MAX {
        return Err(refused("it is too long"));
    }
    let url = Url::parse(text).map_err(|error| OutboundError::Refused(error.to_string()))?;
    check_parsed(options, &url)?;
    Ok(url)
}

fn check_parsed(options: &OutboundOptions, url: &Url) -> Result<(), OutboundError> {
    let refused = |reason: &str| Err(OutboundError::Refused(reason.to_owned()));
    if !["http", "https"].contains(&url.scheme()) {
        return refused("it is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("it has a user name or password");
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return refused("it has no host");
    };
    if !options.hosts.iter().any(|listed| names(listed, host, port)) {
        return refused("its host is not one that this gateway asks");
    }
    Ok(())
}

/// Whether an entry of the list names the host.
fn names(listed: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let listed = listed.trim_end_matches('.').to_ascii_lowercase();
    // `[::1]:80` has its port behind the brackets, `::1` has none.
    let (name, wanted) = match listed.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') || name.ends_with(']') => match digits.parse::<u16>() {
            Ok(number) => (name.to_owned(), Some(number)),
            Err(_) => (listed.clone(), None),
        },
        _ => (listed.clone(), None),
    };
    let fits = match name.strip_prefix("*.") {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => host == name,
    };
    fits && wanted.is_none_or(|wanted| wanted == port)
}

/// Asks for the URL and follows redirects. The answer's status is a success.
pub(crate) async fn get(options: &OutboundOptions, url: Url) -> Result<Response, OutboundError> {
    let mut url = url;
    for _ in 0..=REDIRECTS_MAX {
        let response = send(options, Method::GET, &url, Vec::new(), None).await?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let status = response.status();
        if !status.is_redirection() {
            return if status.is_success() { Ok(response) } else { Err(status_error(host, &response)) };
        }
        let next = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = next.and_then(|next| url.join(next).ok()).ok_or_else(|| status_error(host, &response))?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(OutboundError::Refused("it redirects from https to something else".to_owned()));
        }
        check_parsed(options, &next)?;
        url = next;
    }
    Err(OutboundError::Refused("it redirects too often".to_owned()))
}

/// Posts JSON. Redirects are not followed: what is told is for the host that was named. The answer's status is a success.
pub(crate) async fn post_json(
    options: &OutboundOptions,
    url: &Url,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
) -> Result<(), OutboundError> {
    let response = send(options, Method::POST, url, headers, Some(body)).await?;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(status_error(url.host_str().unwrap_or_default().to_owned(), &response))
    }
}

/// Resolves nothing: the checked addresses stand before it, and whatever they don't answer for is not asked.
struct NoLookups;

impl Resolve for NoLookups {
    fn resolve(&self, name: Name) -> Resolving {
        let refused = format!("{} was not checked", name.as_str());
        Box::pin(std::future::ready(Err(refused.into())))
    }
}

fn status_error(host: String, response: &Response) -> OutboundError {
    OutboundError::Status { host, status: response.status().as_u16() }
}

async fn send(
    options: &OutboundOptions,
    method: Method,
    url: &Url,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
) -> Result<Response, OutboundError> {
    check_parsed(options, url)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let addresses = addresses(options, url, &host).await?;
    let failed = |source: reqwest::Error| OutboundError::Failed { host: host.clone(), source: source.without_url() };
    // A client a request: it knows the checked addresses and nothing else of the name, and keeps nothing.
    let client = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIME_MAX)
        .timeout(options.time_max)
        .pool_max_idle_per_host(0)
        .dns_resolver(NoLookups)
        .resolve_to_addrs(host.trim_matches(['[', ']']), &addresses)
        .build()
        .map_err(failed)?;
    let mut request = client.request(method, url.clone());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body);
    }
    let response = request.send().await.map_err(failed)?;
    // The same promise, looked at from the other side.
    if response.remote_addr().is_some_and(|address| !addresses.iter().any(|checked| checked.ip() == address.ip())) {
        return Err(OutboundError::Refused("it was answered from an address that was not checked".to_owned()));
    }
    Ok(response)
}

/// The addresses of the host, all of which may be asked.
async fn addresses(options: &OutboundOptions, url: &Url, host: &str) -> Result<Vec<SocketAddr>, OutboundError> {
    let port = url.port_or_known_default().unwrap_or(80);
    let lookup = |source| OutboundError::Lookup { host: host.to_owned(), source };
    let resolving = tokio::net::lookup_host((host.trim_matches(['[', ']']), port));
    let resolved = match tokio::time::timeout(CONNECT_TIME_MAX, resolving).await {
        Ok(resolved) => resolved.map_err(lookup)?,
        Err(_) => return Err(lookup(std::io::ErrorKind::TimedOut.into())),
    };
    let addresses: Vec<SocketAddr> = resolved.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(lookup(std::io::ErrorKind::NotFound.into()));
    }
    if !options.private_addresses && !addresses.iter().all(|address| is_public(address.ip())) {
        return Err(OutboundError::Refused("its host has an address that is not public".to_owned()));
    }
    Ok(addresses)
}

/// Whether the address is one of the public Internet (the special-purpose registries of IANA list those that are not).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b));
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        // Mapped and compatible addresses of version 4, and among them the unspecified and the loopback address.
        (0, 0) if [c, d, e] == [0, 0, 0] && (f == 0xffff || f == 0) => embedded(g, h),
        // NAT64 and 6to4 lead to an address of version 4.
        (0x64, 0xff9b) => [c, d, e, f] == [0, 0, 0, 0] && embedded(g, h),
        (0x2002, _) => embedded(b, c),
        // Teredo, benchmarking, ORCHID, documentation.
        (0x2001, 0 | 2 | 0x0db8) => false,
        (0x2001, _) if (0x10..0x40).contains(&b) => false,
        // All that is handed out is in here; loopback, local and multicast addresses are not.
        _ => (0x2000..0x4000).contains(&a) && a != 0x3fff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in
            ["1.1.1.1", "93.184.215.14", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1", "64:ff9b::101:101"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for not in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "4000::1",
        ] {
            assert!(!is_public(not.parse().unwrap()), "{not}");
        }
    }

    #[test]
    fn only_listed_hosts_are_asked() {
        let hosts = ["files.example", "Build.Example:8443", "*.cdn.example", "192.0.2.7", "[::1]:80"];
        let options = OutboundOptions { hosts: hosts.map(str::to_owned).to_vec(), ..OutboundOptions::default() };
        for good in [
            "http://files.example/a",
            "https://FILES.example.:9000/",
            "https://build.example:8443/x",
            "http://a.cdn.example/",
            "http://a.b.cdn.example/",
            "http://192.0.2.7/",
            "http://0xC0000207/",
            "http://[::1]/",
        ] {
            assert!(checked_url(&options, good).is_ok(), "{good}: {:?}", checked_url(&options, good));
        }
        for bad in [
            "http://other.example/",
            "http://files.example.evil.test/",
            "http://evilfiles.example/",
            "https://build.example/",
            "http://cdn.example/",
            "http://xcdn.example/",
            "ftp://files.example/",
            "file:///etc/passwd",
            "http://user@files.example/",
            "http://user:pw@files.example/",
            "http://files.example@evil.test/",
            "http://[::1]:81/",
            "nonsense",
            "http://",
            "http://192.0.2.8/",
            "http://evil.test\\@files.example/",
        ] {
            assert!(checked_url(&options, bad).is_err(), "{bad}");
        }
        assert!(checked_url(&OutboundOptions::default(), "http://files.example/").is_err(), "off by default");
    }
}
