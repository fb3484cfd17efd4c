//! Where traces go. The settings are known to every build, so that one that can't export traces says so instead of being silent.

use std::net::IpAddr;

use anyhow::{Context, bail};
use reqwest::Url;
use serde::{Deserialize, Serialize};

/// Most spans that may wait: some hundred megabytes.
const QUEUE_SPANS_MAX: usize = 262_144;
/// Where collectors take traces, below their address.
const TRACES_PATH: &str = "v1/traces";

/// Traces by OTLP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpConfig {
    /// The collector's address for OTLP over HTTP, without `/v1/traces`; none: no traces.
    pub endpoint: Option<String>,
    /// How many of all traces are sent (0 to 1). A file's trace is sent by every process or by none.
    pub sampled_share: f64,
    /// Spans that may wait to be sent; further ones are dropped and counted.
    pub queue_spans: usize,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self { endpoint: None, sampled_share: 1.0, queue_spans: 8192 }
    }
}

impl OtlpConfig {
    /// Checks what types alone can't, and that this build can do it.
    pub fn check(&self) -> anyhow::Result<()> {
        if !(0.0..=1.0).contains(&self.sampled_share) {
            bail!("otlp.sampled_share must be 0 to 1, got {}", self.sampled_share);
        }
        if !(1..=QUEUE_SPANS_MAX).contains(&self.queue_spans) {
            bail!("otlp.queue_spans must be 1 to {QUEUE_SPANS_MAX}, got {}", self.queue_spans);
        }
        if self.traces_url().context("otlp.endpoint")?.is_some() && !cfg!(feature = "otlp") {
            bail!("otlp.endpoint is set, but this lazaret was built without OTLP: build it with `--features otlp`");
        }
        Ok(())
    }

    /// The URL that traces are posted to, if they are to be sent.
    pub fn traces_url(&self) -> anyhow::Result<Option<Url>> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let url = Url::parse(endpoint).with_context(|| format!("{endpoint:?} is no URL"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            bail!("it must have no user name, password, query or fragment");
        }
        match (url.scheme(), url.host_str()) {
            ("https", Some(_)) => {}
            ("http", Some(host)) if is_loopback(host) => {}
            ("http", Some(_)) => bail!("{endpoint:?} is plain http and not loopback: use https"),
            _ => bail!("{endpoint:?} is neither an http nor an https URL"),
        }
        let traces = format!("{}/{TRACES_PATH}", url.as_str().trim_end_matches('/'));
        Ok(Some(Url::parse(&traces)?))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(endpoint: &str) -> OtlpConfig {
        OtlpConfig { endpoint: Some(endpoint.to_owned()), ..OtlpConfig::default() }
    }

    #[test]
    fn plain_http_stays_on_this_machine_and_nonsense_is_refused() {
        for (endpoint, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
            ("https://collector.example/otlp/", "https://collector.example/otlp/v1/traces"),
        ] {
            assert_eq!(at(endpoint).traces_url().unwrap().unwrap().as_str(), url);
        }
        for endpoint in [
            "http://collector.example:4318",
            "http://192.0.2.7",
            "http://localhost.example",
            "https://user:secret@collector.example",
            "https://collector.example/?key=secret",
            "grpc://127.0.0.1:4317",
            "127.0.0.1:4318",
            "",
        ] {
            assert!(at(endpoint).traces_url().is_err(), "{endpoint}");
        }
        assert!(OtlpConfig { sampled_share: 1.5, ..OtlpConfig::default() }.check().is_err());
        assert!(OtlpConfig { queue_spans: 0, ..OtlpConfig::default() }.check().is_err());
        assert!(OtlpConfig::default().check().is_ok());
    }

    #[test]
    fn a_build_that_exports_nothing_says_so() {
        let checked = at("http://127.0.0.1:4318").check();
        assert_eq!(checked.is_ok(), cfg!(feature = "otlp"), "{checked:?}");
        if let Err(error) = checked {
            assert!(error.to_string().contains("--features otlp"), "{error}");
        }
    }
}
