//! The key that signs results of batches, and its certificate.
//!
//! Both lie in one file, which is made on the first start for its owner alone. It may be replaced by another key with a
//! certificate of the operator's own; what was signed before stays verifiable, since each signed result carries the
//! certificate. The key signs nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lazaret_digests::{Selection, Set};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};

use crate::decode::Base64;

/// Who signs, in the certificate that is made here.
const COMMON_NAME: &str = "Lazaret batch results";
/// Characters of base64 in a line, as PEM has them.
const LINE_CHARS: usize = 64;

/// Signs.
pub struct Signer {
    key: KeyPair,
    /// PEM.
    certificate: String,
    fingerprint_sha1: String,
}

/// Why there is no signer, or no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The file could not be made or read.
    #[error("the signing key {path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// What lies in it is no key, or no certificate.
    #[error("the signing key is not a PKCS #8 private key followed by a certificate, in PEM: {0}")]
    Malformed(String),
    /// The key could not be made or used.
    #[error("the signing key cannot be used: {0}")]
    Key(#[from] rcgen::Error),
}

impl Signer {
    /// The signer of the file, which is made if it is missing. Blocks.
    pub fn open(path: &Path) -> Result<Self, SignerError> {
        let failed = |source| SignerError::File { path: path.display().to_string(), source };
        match fs::read_to_string(path) {
            Ok(pem) => Self::from_pem(&pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, &new_pem()?).map_err(failed)?;
                // Not necessarily ours: another process may have been faster.
                Self::from_pem(&fs::read_to_string(path).map_err(failed)?)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The signer of a text: a private key (PKCS #8) and its certificate, in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, SignerError> {
        let missing = || SignerError::Malformed("it has no certificate".to_owned());
        let certificate = certificate_of(pem).ok_or_else(missing)?;
        let body: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
        let mut der = Vec::new();
        let mut decoder = Base64::default();
        let decoded = decoder.push(body.as_bytes(), &mut der).and_then(|()| decoder.finish());
        decoded.map_err(|error| SignerError::Malformed(error.to_string()))?;
        let fingerprint_sha1 = Set::digest(Selection::ALL, &der).sha1_hex();
        let key = KeyPair::from_pem(pem).map_err(|error| SignerError::Malformed(error.to_string()))?;
        Ok(Self { key, certificate: certificate.to_owned(), fingerprint_sha1 })
    }

    /// SHA-1 of the certificate, in hexadecimal.
    pub fn fingerprint_sha1(&self) -> &str {
        &self.fingerprint_sha1
    }

    /// The report with its signature and the certificate behind it.
    pub fn sign(&self, mut report: String) -> Result<String, SignerError> {
        let signature = base64(&self.key.sign(report.as_bytes())?);
        report.push_str("---\nsignature: |\n");
        push_indented(&mut report, &signature);
        report.push_str("certificate: |\n");
        push_indented(&mut report, &self.certificate);
        report.push_str("...\n");
        Ok(report)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("fingerprint_sha1", &self.fingerprint_sha1).finish_non_exhaustive()
    }
}

/// A new key and its certificate.
fn new_pem() -> Result<String, SignerError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    // It vouches for results for as long as somebody keeps them, and ends nothing by ending.
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn certificate_of(pem: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let rest = pem.get(pem.find("-----BEGIN CERTIFICATE-----")?..)?;
    rest.get(..rest.find(END)? + END.len())
}

/// Makes the file as a whole or not at all, for its owner alone; one that is there stays.
fn create(path: &Path, pem: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = Path::new(&name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    let linked = match fs::hard_link(draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(draft)?;
    linked?;
    File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

fn push_indented(text: &mut String, block: &str) {
    for line in block.lines().filter(|line| !line.is_empty()) {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
}

/// Base64 in lines.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    let mut in_line = 0;
    for group in bytes.chunks(3) {
        let value = group.iter().fold(0_u32, |value, byte| (value << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let sextet = (value >> (18 - 6 * place)) & 63;
            let digit = ALPHABET.get(sextet as usize).copied().filter(|_| place <= group.len()).unwrap_or(b'=');
            text.push(char::from(digit));
        }
        in_line += 4;
        if in_line == LINE_CHARS {
            text.push('\n');
            in_line = 0;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert!(base64(&[0; 500]).lines().all(|line| line.len() <= LINE_CHARS));
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("signing.pem");
        let first = Signer::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left behind");
        let again = Signer::open(&path).unwrap();
        assert_eq!(first.fingerprint_sha1(), again.fingerprint_sha1());
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(Signer::open(&path), Err(SignerError::Malformed(_))));
        assert!(matches!(Signer::open(&directory.path().join("no/signing.pem")), Err(SignerError::File { .. })));
    }
}
