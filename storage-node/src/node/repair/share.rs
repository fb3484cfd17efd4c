//! Which things nodes should hold, and which two of them should both hold: functions of a map and of who counts as lost.

use lazaret_protocol::message::{CopyClaim, Hold, PutLocator, RepairItem, Tombstone};
use lazaret_protocol::placement::write_order;
use lazaret_protocol::{BlobName, ClusterMap, NodeId, PlacementKey};

use crate::index::{BlobEntry, Entry};

/// A map and who of it counts as lost.
#[derive(Clone, Copy)]
pub(crate) struct View<'v> {
    pub(crate) map: &'v ClusterMap,
    pub(crate) lost: &'v [NodeId],
}

impl View<'_> {
    /// Who should hold what is placed by `key`: the first `max_replica` nodes in order that take writes and are not lost.
    pub(crate) fn owners(&self, key: PlacementKey) -> Vec<NodeId> {
        write_order(self.map, key)
            .into_iter()
            .map(|node| node.id)
            .filter(|id| !self.lost.contains(id))
            .take(usize::from(self.map.max_replica))
            .collect()
    }

    /// Who should hold an item; `None` for all nodes.
    pub(crate) fn owners_of(&self, item: &RepairItem) -> Option<Vec<NodeId>> {
        match item {
            RepairItem::Blob { placement, .. } => Some(self.owners(*placement)),
            RepairItem::Locator(put) => Some(self.owners(put.name.placement())),
            RepairItem::Tombstone(_) | RepairItem::Hold(_) => None,
        }
    }

    /// Whether both of two nodes should hold an item.
    pub(crate) fn is_shared(&self, item: &RepairItem, one: NodeId, other: NodeId) -> bool {
        self.owners_of(item).is_none_or(|owners| owners.contains(&one) && owners.contains(&other))
    }

    /// How many owners must have confirmed their copies before a surplus one goes: as many as there should be, whether or
    /// not some of them are lost.
    pub(crate) fn confirmations(&self) -> usize {
        let writable = self.map.nodes.iter().filter(|node| node.state == lazaret_protocol::NodeState::Up).count();
        usize::from(self.map.max_replica).min(writable)
    }
}

/// What an entry holds that nodes keep in agreement. A damaged copy is as good as none.
pub(crate) fn items(name: BlobName, entry: &Entry) -> impl Iterator<Item = RepairItem> {
    let blob = entry.blob.as_ref().filter(|blob| !blob.damaged).map(|blob| copy(name, blob));
    let locator = entry
        .locator
        .map(|held| RepairItem::Locator(PutLocator { name, locator: held.locator, put_time_ms: held.put_time_ms }));
    let tombstone = entry.killed_until_ms.map(|time_ms| RepairItem::Tombstone(Tombstone { name, time_ms }));
    let hold = hold(name, entry).map(RepairItem::Hold);
    [blob, locator, tombstone, hold].into_iter().flatten()
}

/// A copy as nodes speak of it.
pub(crate) fn copy(name: BlobName, blob: &BlobEntry) -> RepairItem {
    RepairItem::Blob {
        name,
        length: blob.length,
        put_time_ms: blob.put_time_ms,
        placement: blob.placement().unwrap_or_else(|| name.placement()),
    }
}

/// The newest hold that was placed or released.
pub(crate) fn hold(name: BlobName, entry: &Entry) -> Option<Hold> {
    entry.hold.map(|hold| hold.told(name))
}

/// Whether an entry holds the copy that is claimed, or a newer one.
pub(crate) fn holds(entry: Option<&Entry>, claim: &CopyClaim) -> bool {
    let blob = entry.and_then(|entry| entry.blob.as_ref());
    blob.is_some_and(|blob| blob.covers(claim.put_time_ms))
}

/// The name just before the first one of a partition; `None` if it is the first partition.
pub(crate) fn before_partition(partition: u8) -> Option<BlobName> {
    partition.checked_sub(1).map(end_of_partition)
}

/// The last name of a partition.
pub(crate) fn end_of_partition(partition: u8) -> BlobName {
    let mut name = [0xff; 32];
    name[0] = partition;
    BlobName(name)
}
