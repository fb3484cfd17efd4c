//! The settings of a cluster in one process: those of its gateway and its scan worker, except where things lie, since
//! everything lies below one directory.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::{Config, GatewayConfig, OtlpConfig, ScanWorkerConfig};
use crate::logging::LogConfig;

/// What the command line or the data directory decides, in both sections.
const DECIDED: [&str; 14] = [
    "listen",
    "plain_http_off_loopback",
    "cluster",
    "results",
    "identity",
    "admin_key_file",
    "client_key_file",
    "secret",
    "signing_key",
    "callback_key",
    "scan_threads",
    "metrics",
    "log",
    "otlp",
];

/// `lazaret up --config FILE`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpConfig {
    /// The gateway.
    pub gateway: GatewayConfig,
    /// The scan worker.
    pub scan_worker: ScanWorkerConfig,
    /// Where `GET /metrics` is answered, for everything in the process; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// Where log lines go.
    pub log: LogConfig,
    /// Where traces go.
    pub otlp: OtlpConfig,
}

impl Config for UpConfig {
    const ENV_PREFIX: &'static str = "LAZARET_UP_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        // The others are decided by the data directory.
        let tls = self.gateway.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.private_key]);
        let mut paths: Vec<&mut PathBuf> = tls.chain(&mut self.gateway.rules).collect();
        paths.extend(&mut self.scan_worker.spool_dir);
        paths.extend(self.scan_worker.engines.paths());
        paths
    }

    fn log(&mut self) -> Option<&mut LogConfig> {
        Some(&mut self.log)
    }

    fn check(&self) -> anyhow::Result<()> {
        undecided("gateway", &self.gateway)?;
        undecided("scan_worker", &self.scan_worker)?;
        self.log.check()?;
        self.otlp.check()?;
        self.gateway.check().context("gateway")?;
        self.scan_worker.check().context("scan_worker")
    }
}

/// That a section sets nothing that is decided elsewhere: it would be without effect, and without a word.
fn undecided<S: Serialize + Default>(section: &str, settings: &S) -> anyhow::Result<()> {
    let (settings, usual) = (serde_json::to_value(settings)?, serde_json::to_value(S::default())?);
    match DECIDED.iter().find(|key| settings.get(**key) != usual.get(**key)) {
        Some(key) => bail!("{section}.{key} can't be set for a cluster in one process: see `lazaret up --help`"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(yaml: &str) -> Result<UpConfig, String> {
        let config: UpConfig = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        config.check().map(|()| config).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn settings_of_the_parts_are_taken_and_those_that_would_have_no_effect_are_refused() {
        let config = checked(
            "gateway: {anonymous: true, rate_limits: {submissions_per_second: 5}}\nscan_worker: {lease_seconds: 60}\n\
             metrics: 127.0.0.1:9100\n",
        )
        .unwrap();
        assert!(config.gateway.anonymous && config.scan_worker.lease_seconds == 60);
        for (yaml, word) in [
            ("gateway: {results: /elsewhere.db}", "gateway.results"),
            ("gateway: {metrics: '127.0.0.1:1'}", "gateway.metrics"),
            ("scan_worker: {log: {streams: [{log_type: stderr}]}}", "scan_worker.log"),
            ("gateway: {rate_limits: {submissions_per_second: -1}}", "submissions_per_second"),
            ("gateway: {queue: 1}", "queue"),
            ("scan_worker: {lease_seconds: 0}", "lease_seconds"),
        ] {
            let refused = checked(yaml).unwrap_err();
            assert!(refused.contains(word), "{yaml}: {refused}");
        }
    }
}
