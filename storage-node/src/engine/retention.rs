//! `retention.yml`: what has expired on this disk, for good. Written before anything is removed, so that what expired stays
//! expired whatever the setting becomes later and whatever a crash or a lost index brings back.

use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::disk::Disk;

const FILE: &str = "retention.yml";

/// What has expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    /// Buckets before this one.
    pub(crate) expired_before_bucket: u32,
    /// Segments from this id on were not begun yet then. Ids of removed segments are not used again.
    pub(crate) first_segment_id: u64,
}

impl Retention {
    pub(crate) fn load(disk: &dyn Disk) -> Result<Self, EngineError> {
        let Some(content) = disk.read_small(FILE)? else { return Ok(Self::default()) };
        let text = String::from_utf8_lossy(&content);
        serde_saphyr::from_str(&text).map_err(|error| EngineError::Identity(format!("{FILE}: {error}")))
    }

    /// Durable when it returns.
    pub(crate) fn save(&self, disk: &dyn Disk) -> Result<(), EngineError> {
        let text = serde_saphyr::to_string(self).map_err(|error| EngineError::Identity(format!("{FILE}: {error}")))?;
        Ok(disk.write_small(FILE, text.as_bytes())?)
    }
}
