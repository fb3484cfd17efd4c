//! Fixed-size identifiers. All of them print and parse as lower-case hexadecimal, travel as raw bytes in binary
//! formats and as hexadecimal text in human-readable ones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is not the hexadecimal form of the identifier that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected {digits} hexadecimal digits, got {got:?}")]
pub struct ParseIdError {
    kind: &'static str,
    digits: usize,
    got: String,
}

/// Longest piece of a refused text that an error repeats.
const SHOWN_CHARS: usize = 80;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The identifier's length in bytes.
            pub const BYTES: usize = $bytes;

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $bytes];
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(ParseIdError {
                        kind: $kind,
                        digits: 2 * $bytes,
                        got: text.chars().take(SHOWN_CHARS).collect(),
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    <[u8; $bytes]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

identifier!(
    /// A blob's name: the BLAKE3 hash of its content. It is the blob's only identity; other digests are attributes.
    BlobName, 32, "blob name"
);
identifier!(
    /// What decides a blob's replica set: its name, or for a streamed blob the BLAKE3 hash of its first
    /// [`crate::limits::HELD_BYTES_MAX`] bytes.
    PlacementKey, 32, "placement key"
);
identifier!(
    /// A storage node, for as long as it lives. Chosen at random when the node is initialised.
    NodeId, 16, "node id"
);
identifier!(
    /// A cluster. Nodes and clients of different clusters refuse each other.
    ClusterId, 16, "cluster id"
);
identifier!(
    /// One streamed upload, before its name is known. Chosen at random by the client.
    UploadId, 16, "upload id"
);

impl BlobName {
    /// The name of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// The placement key of a blob that was whole in the client's hands before it was placed.
    pub const fn placement(&self) -> PlacementKey {
        PlacementKey(self.0)
    }

    /// The name as the BLAKE3 crate's hash type, whose equality is constant-time.
    pub fn hash(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(self.0)
    }
}

impl PlacementKey {
    /// The placement key of a streamed blob, from its first bytes.
    pub fn of_head(head: &[u8]) -> Self {
        Self(*blake3::hash(head).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_nothing_is_the_published_blake3_vector() {
        // BLAKE3 test_vectors.json, input_len 0.
        let published = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(BlobName::of(b"").to_string(), published);
        assert_eq!(published.parse::<BlobName>(), Ok(BlobName::of(b"")));
    }

    #[test]
    fn a_wrong_length_or_digit_is_refused_and_named() {
        for bad in ["", "af", &"z".repeat(64), &"a".repeat(63), &"a".repeat(65), "é"] {
            let error = bad.parse::<BlobName>().unwrap_err().to_string();
            assert!(error.contains("blob name") && error.contains("64"), "{error}");
        }
    }
}
