//! `node.yml`: whose a data directory is, which of the node's disks, and how it is laid out. Written when it is first opened,
//! checked ever after. An older format that this build reads becomes its own, before anything is written in it.

use std::fmt;
use std::str::FromStr;

use lazaret_node_client::environment::Random;
use lazaret_protocol::{ClusterId, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{EngineError, EngineOptions};
use crate::disk::Disk;
use crate::record::{FORMAT_VERSION, FORMAT_VERSION_OLDEST, FormatError};

const FILE: &str = "node.yml";

/// Which disk: random, made when it is first used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub [u8; 16]);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for DiskId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for DiskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DiskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: u32,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// Absent in a directory that was made before nodes had several disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<DiskId>,
}

/// The one field that every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

impl Identity {
    /// What the file says; `None` if there is none yet.
    pub(crate) fn read(disk: &dyn Disk) -> Result<Option<Self>, EngineError> {
        let unreadable = |error: &dyn fmt::Display| EngineError::Identity(format!("{FILE}: {error}"));
        let Some(content) = disk.read_small(FILE)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&content);
        let AnyFormat { format } = serde_saphyr::from_str(&text).map_err(|error| unreadable(&error))?;
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&format) {
            let object = format!("the data directory ({FILE})");
            return Err(EngineError::Format { object, source: FormatError::Version(format) });
        }
        serde_saphyr::from_str(&text).map(Some).map_err(|error| unreadable(&error))
    }

    fn write(&self, disk: &dyn Disk) -> Result<(), EngineError> {
        let text = serde_saphyr::to_string(self).map_err(|error| EngineError::Identity(format!("{FILE}: {error}")))?;
        Ok(disk.write_small(FILE, text.as_bytes())?)
    }
}

/// Takes possession of an empty data directory, or checks that it is this node's.
pub(crate) fn check(disk: &dyn Disk, options: &EngineOptions, random: &dyn Random) -> Result<DiskId, EngineError> {
    let found = check_owner(disk, options)?;
    let id = found.as_ref().and_then(|found| found.disk).unwrap_or_else(|| {
        let mut id = DiskId([0; 16]);
        random.fill(&mut id.0);
        id
    });
    let (cluster, node) = (options.cluster, options.node);
    let identity = Identity { format: FORMAT_VERSION, cluster, node, disk: Some(id) };
    if found.as_ref() != Some(&identity) {
        identity.write(disk)?;
    }
    Ok(id)
}

/// Checks that a data directory is this node's or nobody's. Returns what its file says.
pub(crate) fn check_owner(disk: &dyn Disk, options: &EngineOptions) -> Result<Option<Identity>, EngineError> {
    let found = Identity::read(disk)?;
    match &found {
        Some(found) if (found.cluster, found.node) != (options.cluster, options.node) => Err(EngineError::Foreign {
            object: format!("the data directory {} ({FILE})", disk.place()),
            cluster: found.cluster,
            node: found.node,
            own_cluster: options.cluster,
            own_node: options.node,
        }),
        _ => Ok(found),
    }
}
