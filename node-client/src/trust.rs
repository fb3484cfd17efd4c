//! Keys and certificates as they lie in files, read again when they may have changed, so that they are rotated without a
//! restart.
//!
//! A key file may have a `.previous` beside it: while that is there, the key before the present one is good as well, at either
//! end and in whichever order nodes and clients get to know the new one. A CA file may hold several certificates. Files that
//! do not fit together, as they are for a moment while they are being replaced, change nothing: what was read before stays.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::cluster_file::{ClusterFileError, read_key, read_text};
use crate::quic::Credentials;
use crate::tls::TlsError;

/// What is appended to a key file's name for the key before.
const PREVIOUS: &str = ".previous";

/// Where the key before the present one lies.
pub fn previous_key_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(PREVIOUS);
    name.into()
}

/// The keys that are good: the present one and, while there is one, the one before.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<String>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// One key.
    pub fn one(key: String) -> Self {
        Self(vec![key])
    }

    /// Reads the key at `path`, and the one before.
    pub fn read(what: &'static str, path: &Path) -> Result<Self, ClusterFileError> {
        let mut keys = vec![read_key(what, path)?];
        match read_key(what, &previous_key_path(path)) {
            Ok(previous) => keys.push(previous),
            Err(ClusterFileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        keys.dedup();
        Ok(Self(keys))
    }

    /// The keys, the present one first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Why files with keys and certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] ClusterFileError),
    /// They do not fit together.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What was last said of files that cannot be used, so that it is said once and not each time they are looked at.
#[derive(Default)]
pub struct Complaint(Mutex<Option<String>>);

impl Complaint {
    /// Takes note of how reading the files went, and logs it if that is news.
    pub fn note(&self, outcome: Result<(), TrustError>) {
        let error = outcome.err().map(|error| error.to_string());
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == error {
            return;
        }
        match &error {
            Some(error) => tracing::warn!(error, "keys or certificates cannot be used, the former ones stay in use"),
            None => tracing::info!("keys and certificates can be used again"),
        }
        *last = error;
    }
}

/// Which files a transport takes its trust and its rights from.
#[derive(Debug, Clone)]
pub struct TrustFiles {
    /// The cluster CA's certificates.
    pub ca: PathBuf,
    /// What to prove the rights with.
    pub credentials: CredentialFiles,
}

/// The files behind [`Credentials`].
#[derive(Debug, Clone)]
pub enum CredentialFiles {
    /// The connection key.
    Connection(PathBuf),
    /// The storage admin key.
    Admin(PathBuf),
    /// A node's certificate and private key.
    Peer {
        /// The certificate chain.
        certificate: PathBuf,
        /// The private key.
        private_key: PathBuf,
    },
}

/// What the files say.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TrustTexts {
    pub(crate) ca: String,
    /// Tried in this order.
    pub(crate) credentials: Vec<Credentials>,
}

impl TrustFiles {
    pub(crate) fn read(&self) -> Result<TrustTexts, ClusterFileError> {
        let credentials = match &self.credentials {
            CredentialFiles::Connection(path) => {
                Keys::read("connection key", path)?.0.into_iter().map(Credentials::Connection).collect()
            }
            CredentialFiles::Admin(path) => {
                Keys::read("storage admin key", path)?.0.into_iter().map(Credentials::Admin).collect()
            }
            CredentialFiles::Peer { certificate, private_key } => vec![Credentials::Peer {
                certificate_pem: read_text("node certificate", certificate)?,
                key_pem: read_text("node private key", private_key)?,
            }],
        };
        Ok(TrustTexts { ca: read_text("cluster CA", &self.ca)?, credentials })
    }
}
