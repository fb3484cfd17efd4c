//! How clients learn at once that a node was restarted without saying goodbye: it answers packets of connections it does
//! not know with QUIC's stateless reset (RFC 9000, 10.3), whose token the client was given by the process before.
//!
//! For that, the tokens follow from the node's private key alone: they are the same after a restart and known to nobody
//! else. Connection ids are random, since quinn's own are recognised by the process only that made them. Resets are
//! limited in rate by quinn, so that stray packets earn nothing.

use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator};

/// The BLAKE3 context under which the key of tokens follows from the private key's PEM text.
const TOKEN_CONTEXT: &str = "lazaret 2026 stateless reset token v1";

/// As long as quinn's own.
const CONNECTION_ID_BYTES: usize = 8;

/// Makes reset tokens.
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    pub(crate) fn of(key_pem: &str) -> Self {
        Self(blake3::derive_key(TOKEN_CONTEXT, key_pem.as_bytes()))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // blake3's hashes compare in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Makes connection ids.
pub(crate) struct RandomConnectionIds;

impl ConnectionIdGenerator for RandomConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        if let Err(error) = getrandom::fill(&mut id) {
            // quinn draws again until an id is new, so this one serves once; TLS fails for itself.
            tracing::error!(%error, "the operating system supplies no randomness for connection ids");
        }
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
