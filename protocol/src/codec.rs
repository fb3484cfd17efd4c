//! How messages become bytes: a frame of length (u32, little-endian), version (u16, little-endian) and the
//! bincode-encoded message. The length counts what follows it.
//!
//! Decoding never allocates more than [`MESSAGE_BYTES_MAX`], refuses other versions by number, and refuses bytes left over.

use serde::{Serialize, de::DeserializeOwned};

use crate::limits::MESSAGE_BYTES_MAX;

/// The version of every message in this build.
pub const VERSION: u16 = 1;

/// Bytes before a message: length and version.
pub const FRAME_HEADER_BYTES: usize = 6;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame claims more than any message has.
    #[error("message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The frame claims less than its own version number takes.
    #[error("frame of {0} bytes is too short")]
    TooShort(usize),
    /// The peer speaks another version.
    #[error("message version {0} is not spoken here (this build speaks {VERSION})")]
    Version(u16),
    /// Not a message of the expected type.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// The whole frame of `message`.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    bincode::serde::encode_into_std_write(message, &mut frame, CONFIG)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    let body_bytes = frame.len() - FRAME_HEADER_BYTES;
    if body_bytes > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong(body_bytes));
    }
    // At most MESSAGE_BYTES_MAX + 2, so it fits.
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
    Ok(frame)
}

/// How many bytes follow a frame's length field, checked against the limit before anything is allocated for them.
pub fn frame_body_bytes(length_field: [u8; 4]) -> Result<usize, CodecError> {
    let length = u32::from_le_bytes(length_field) as usize;
    if length < 2 {
        Err(CodecError::TooShort(length))
    } else if length - 2 > MESSAGE_BYTES_MAX {
        Err(CodecError::TooLong(length - 2))
    } else {
        Ok(length)
    }
}

/// The message in what follows a frame's length field.
pub fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, CodecError> {
    let Some((version, message)) = body.split_first_chunk::<2>() else {
        return Err(CodecError::TooShort(body.len()));
    };
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong(message.len()));
    }
    decode_payload(message)
}

/// `value` without a frame, for records on disk, which have framing and versions of their own.
pub fn encode_payload<M: Serialize>(value: &M) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| CodecError::Malformed(error.to_string()))
}

/// What [`encode_payload`] encoded; bytes left over are refused.
pub fn decode_payload<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Malformed(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}
