//! Fetches a root's content into memory if it is short enough and the budget allows it. Otherwise it is read by ranges.

use bytes::Bytes;
use lazaret_protocol::BlobName;

use super::Shared;
use crate::memory::Reservation;
use crate::source::{SourceError, get_error};

impl Shared {
    /// The content of a blob of `length` bytes; none if it is to be read by ranges.
    pub(super) async fn fetch(&self, name: BlobName, length: u64) -> Result<Option<(Bytes, Reservation)>, SourceError> {
        if length > self.options.sample_memory_max_bytes {
            return Ok(None);
        }
        let Some(reservation) = self.scanner.memory().try_reserve(length) else { return Ok(None) };
        let mut download = self.cluster.get(name, None).await.map_err(|error| get_error(name, &error))?;
        let mut content: Vec<u8> = Vec::new();
        while let Some(piece) = download.next().await.map_err(|error| get_error(name, &error))? {
            if (content.len() + piece.len()) as u64 > length {
                let reason = format!("it is longer than the {length} bytes that were submitted");
                return Err(SourceError::Unavailable { name, reason });
            }
            if content.is_empty() {
                content.reserve_exact(length as usize);
            }
            content.extend_from_slice(&piece);
        }
        if content.len() as u64 == length {
            Ok(Some((content.into(), reservation)))
        } else {
            let reason = format!("it has {} bytes, {length} were submitted", content.len());
            Err(SourceError::Unavailable { name, reason })
        }
    }
}
