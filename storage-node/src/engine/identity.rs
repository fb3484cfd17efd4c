//! `node.yml`: whose a data directory is and how it is laid out. Written when it is first opened, checked ever after. An
//! older format that this build reads becomes its own, before anything is written in it.

use lazaret_protocol::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::disk::Disk;
use crate::record::{FORMAT_VERSION, FORMAT_VERSION_OLDEST, FormatError};

const FILE: &str = "node.yml";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    cluster: ClusterId,
    node: NodeId,
}

/// The one field that every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

/// Takes possession of an empty data directory, or checks that it is this node's.
pub(crate) fn check(disk: &dyn Disk, cluster: ClusterId, node: NodeId) -> Result<(), EngineError> {
    let unreadable = |error: &dyn std::fmt::Display| EngineError::Identity(format!("{FILE}: {error}"));
    let Some(content) = disk.read_small(FILE)? else {
        return write(disk, &Identity { format: FORMAT_VERSION, cluster, node });
    };
    let text = String::from_utf8_lossy(&content);
    let AnyFormat { format } = serde_saphyr::from_str(&text).map_err(|error| unreadable(&error))?;
    if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&format) {
        let object = format!("the data directory ({FILE})");
        return Err(EngineError::Format { object, source: FormatError::Version(format) });
    }
    let found: Identity = serde_saphyr::from_str(&text).map_err(|error| unreadable(&error))?;
    if (found.cluster, found.node) != (cluster, node) {
        return Err(EngineError::Foreign {
            object: format!("the data directory ({FILE})"),
            cluster: found.cluster,
            node: found.node,
            own_cluster: cluster,
            own_node: node,
        });
    }
    if format == FORMAT_VERSION { Ok(()) } else { write(disk, &Identity { format: FORMAT_VERSION, ..found }) }
}

fn write(disk: &dyn Disk, identity: &Identity) -> Result<(), EngineError> {
    let text = serde_saphyr::to_string(identity).map_err(|error| EngineError::Identity(format!("{FILE}: {error}")))?;
    Ok(disk.write_small(FILE, text.as_bytes())?)
}
