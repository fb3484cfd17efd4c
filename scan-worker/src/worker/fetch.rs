//! Fetches a root's content into memory if it is short enough and the budget allows it. Otherwise it is read by ranges.

use bytes::Bytes;
use lazaret_analysis::AnalysisRecord;
use lazaret_protocol::BlobName;

use super::Shared;
use super::slots::Place;
use super::supervisor::Supervisor;
use crate::budget::StopReason;
use crate::memory::Reservation;
use crate::source::{SourceError, get_error};

/// Content in memory, and its share of the memory for samples.
type Content = (Bytes, Reservation);

/// Why there is no content to scan.
pub(super) enum Hindrance {
    /// The scan was stopped before.
    Stopped(StopReason),
    /// It could not be read.
    Source(SourceError),
}

impl Shared {
    /// The content of an analysis' file, once there is a slot to scan it in, and how many milliseconds fetching it took.
    pub(super) async fn content(
        &self,
        record: &AnalysisRecord,
        blob: BlobName,
        supervisor: &mut Supervisor<'_>,
        place: &mut Place,
    ) -> Result<(Option<Content>, u64), Hindrance> {
        if !matches!(place, Place::Slot(_)) {
            tokio::select! {
                biased;
                reason = supervisor.next() => return Err(Hindrance::Stopped(reason)),
                slot = self.slots.any() => *place = Place::Slot(slot),
            }
        }
        let began = self.environment.clock.monotonic();
        let fetched = tokio::select! {
            biased;
            reason = supervisor.next() => return Err(Hindrance::Stopped(reason)),
            fetched = self.fetch(blob, record.new.file.size_bytes) => fetched.map_err(Hindrance::Source)?,
        };
        Ok((fetched, self.environment.clock.monotonic().saturating_sub(began).as_millis() as u64))
    }

    /// The content of a blob of `length` bytes; none if it is to be read by ranges.
    pub(super) async fn fetch(&self, name: BlobName, length: u64) -> Result<Option<Content>, SourceError> {
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
