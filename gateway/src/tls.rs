//! HTTPS: the certificate and its key, and their replacement while the gateway runs.
//!
//! Both are PEM files, looked at every few seconds. What can't be used is logged and changes nothing: the certificate in
//! force stays until there is another sound one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// HTTP/2, by the name under which TLS agrees on it.
pub(crate) const HTTP_2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Where the certificate chain and its key lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, then those up to the authority's (PEM).
    pub certificate: PathBuf,
    /// The certificate's key (PEM).
    pub private_key: PathBuf,
}

/// A certificate or key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds nothing of the kind.
    #[error("{path} holds no {what} in PEM: {source}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What was found.
        source: pem::Error,
    },
    /// Certificate and key don't go together, or are of a kind that is not supported.
    #[error("the certificate {path} can't be used with its key: {source}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// The certificate in force.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    /// What the files held, so that only a change is looked into.
    texts: [Vec<u8>; 2],
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.files)
    }
}

impl Tls {
    /// Reads the files. Blocks.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Current::load(&files)?;
        Ok(Self { files, current: RwLock::new(current) })
    }

    /// What takes the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).config))
    }

    /// Takes over what the files hold if that changed; whether it did. Blocks.
    pub(crate) fn look(&self) -> Result<bool, TlsError> {
        let texts = texts(&self.files)?;
        if texts == self.current.read().unwrap_or_else(PoisonError::into_inner).texts {
            return Ok(false);
        }
        let current = Current::of(&self.files, texts)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(true)
    }

    /// Follows the files, for ever.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut said = String::new();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let tls = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || tls.look()).await {
                Ok(Ok(true)) => tracing::info!(path = %self.files.certificate.display(), "certificate replaced"),
                Ok(Ok(false)) => said.clear(),
                // Certificate and key are seldom replaced in one moment, so that the first complaint may mean nothing.
                Ok(Err(error)) if error.to_string() == said => {}
                Ok(Err(error)) => {
                    said = error.to_string();
                    tracing::warn!(%error, "the new certificate can't be used, the former one stays in force");
                }
                Err(error) => tracing::error!(%error, "the certificate could not be looked at"),
            }
        }
    }
}

fn texts(files: &TlsFiles) -> Result<[Vec<u8>; 2], TlsError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    Ok([read(&files.certificate)?, read(&files.private_key)?])
}

impl Current {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::of(files, texts(files)?)
    }

    fn of(files: &TlsFiles, texts: [Vec<u8>; 2]) -> Result<Self, TlsError> {
        let [chain, key] = &texts;
        let not_pem = |path: &Path, what| {
            let path = path.to_owned();
            move |source| TlsError::Pem { path, what, source }
        };
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
            .map_err(not_pem(&files.certificate, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(not_pem(&files.private_key, "private key"))?;
        let unusable = |source| TlsError::Unusable { path: files.certificate.clone(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1_1.to_vec()];
        Ok(Self { config: Arc::new(config), texts })
    }
}
