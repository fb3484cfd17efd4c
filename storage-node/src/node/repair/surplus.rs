//! Hands over what lies here and belongs elsewhere: after a handoff, a changed map, the return of a node whose share was
//! taken over, or a drain. Copies before removal: every owner reads its own copy before this node gives up its.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use lazaret_protocol::limits::{MIB, REPAIR_ITEMS_MAX, UPLOAD_LEASE_MAX_MS};
use lazaret_protocol::message::{
    CopyClaim, CopyClaims, Hold, PutHeader, PutLocator, PutTarget, RepairItem, Request, Response,
};
use lazaret_protocol::{BlobName, NodeId, PlacementKey, UploadId};

use super::{Left, Round};
use crate::node::Shared;

/// Bytes that an owner is asked to read for one answer, unless a single blob is longer.
const VERIFY_BYTES_MAX: u64 = 32 * MIB;
/// How fast an owner reads at least, so that it can be told from one that hangs.
const VERIFY_BYTES_PER_SECOND_MIN: u64 = 8 * MIB;
/// What an answer may take beside reading.
const VERIFY_SLACK: Duration = Duration::from_secs(5);

/// What lies here and belongs elsewhere.
pub(super) struct SurplusItem {
    pub(super) item: RepairItem,
    /// The hold that stands on it.
    pub(super) hold: Option<Hold>,
    /// It can't be sent to anybody.
    pub(super) damaged: bool,
}

/// A copy that belongs elsewhere.
#[derive(Debug, Clone)]
struct Surplus {
    name: BlobName,
    length: u64,
    put_time_ms: u64,
    placement: PlacementKey,
    /// The hold that stands on it, which every owner is told before it confirms.
    hold: Option<Hold>,
    damaged: bool,
    owners: Vec<NodeId>,
    confirmed: BTreeSet<NodeId>,
}

/// Hands over a page of items.
pub(super) async fn hand_over(round: &Round, items: Vec<SurplusItem>) -> Left {
    let mut left = Left::default();
    let mut batch: Vec<Surplus> = Vec::new();
    let mut batch_bytes = 0;
    for SurplusItem { item, hold, damaged } in items {
        match item {
            RepairItem::Blob { name, length, put_time_ms, placement } => {
                round.shared.repair.surplus_blobs.fetch_add(1, Ordering::Relaxed);
                let owners = round.view().owners(placement);
                if batch.len() == REPAIR_ITEMS_MAX || batch_bytes + length > VERIFY_BYTES_MAX {
                    left.and(hand_over_batch(round, std::mem::take(&mut batch)).await);
                    batch_bytes = 0;
                }
                batch_bytes += length;
                let confirmed = BTreeSet::new();
                batch.push(Surplus { name, length, put_time_ms, placement, hold, damaged, owners, confirmed });
            }
            RepairItem::Locator(put) => left.and(hand_over_locator(round, put).await),
            // All nodes own these.
            RepairItem::Tombstone(_) | RepairItem::Hold(_) => {}
        }
    }
    left.and(hand_over_batch(round, batch).await);
    left
}

/// A locator is small: its owners are told it whether or not they have it. It may stay here as well, where it does no harm.
async fn hand_over_locator(round: &Round, put: PutLocator) -> Left {
    let mut left = Left::default();
    for owner in round.view().owners(put.name.placement()) {
        let told = round.shared.cluster.ask(owner, Request::PutLocator(put)).await;
        left.undone |= !matches!(told, Ok(Response::LocatorPut));
    }
    left
}

async fn hand_over_batch(round: &Round, mut batch: Vec<Surplus>) -> Left {
    let mut left = Left::default();
    if batch.is_empty() || round.shared.is_stopping() {
        return left;
    }
    let shared = &round.shared;
    let began = shared.environment.clock.monotonic();
    let owners: BTreeSet<NodeId> = batch.iter().flat_map(|copy| copy.owners.iter().copied()).collect();
    for owner in owners {
        if !round.peers.contains(&owner) {
            left.undone = true;
            continue;
        }
        for at in confirm(round, owner, &mut batch).await {
            let Some(copy) = batch.get_mut(at).filter(|copy| !copy.damaged) else { continue };
            match send(shared, owner, copy).await {
                // What a node has just hashed, written and synced is as good as read.
                Ok(()) => {
                    left.done = true;
                    copy.confirmed.insert(owner);
                    shared.repair.copied_blobs.fetch_add(1, Ordering::Relaxed);
                    shared.repair.copied_bytes.fetch_add(copy.length, Ordering::Relaxed);
                }
                Err(reason) => {
                    left.undone = true;
                    shared.repair.failed_blobs.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(blob = %copy.name, %owner, reason, "a copy could not be handed over");
                }
            }
        }
    }
    left.and(give_up(round, batch).await);
    let worked = shared.environment.clock.monotonic().saturating_sub(began);
    shared.foreground.yield_after(&shared.environment, worked).await;
    left
}

/// Gives up the copies that every owner has confirmed.
///
/// Owners answer only by the map of this round. If it is still in force here, no other node was told since that a copy here
/// counts as an owner's; if it is not, one may have been. Nobody is told while copies are given up.
async fn give_up(round: &Round, batch: Vec<Surplus>) -> Left {
    let shared = &round.shared;
    let mut left = Left::default();
    let _alone = shared.giving_up.write().await;
    if shared.cluster.map().epoch != round.map.epoch {
        left.undone = true;
        return left;
    }
    for copy in batch {
        if copy.confirmed.len() < round.view().confirmations() {
            // A damaged copy helps nobody to get theirs: it goes with a later round, once they have it.
            left.undone |= !copy.damaged;
            continue;
        }
        let given_up = match copy.hold {
            // Every owner was told of it before it confirmed.
            Some(_) => shared.store.forget_held(copy.name, copy.put_time_ms).await,
            None => shared.store.forget(copy.name, copy.put_time_ms).await,
        };
        match given_up {
            Ok(forgotten) => {
                left.done |= forgotten;
                shared.repair.removed_blobs.fetch_add(u64::from(forgotten), Ordering::Relaxed);
                shared.repair.surplus_blobs.fetch_sub(1, Ordering::Relaxed);
            }
            Err(error) => {
                left.undone = true;
                tracing::warn!(blob = %copy.name, %error, "a surplus copy could not be given up");
            }
        }
    }
    left
}

/// Asks an owner which of its copies are sound; returns the places in the batch of those that it lacks.
async fn confirm(round: &Round, owner: NodeId, batch: &mut [Surplus]) -> Vec<usize> {
    let shared = &round.shared;
    for hold in batch.iter().filter(|copy| copy.owners.contains(&owner)).filter_map(|copy| copy.hold) {
        // An owner that does not know of a hold might let the blob expire.
        if !matches!(shared.cluster.ask(owner, Request::Hold(hold)).await, Ok(Response::HoldSet)) {
            return Vec::new();
        }
    }
    let own: BTreeMap<usize, CopyClaim> = batch
        .iter()
        .enumerate()
        .filter(|(_, copy)| copy.owners.contains(&owner))
        .map(|(at, copy)| (at, CopyClaim { name: copy.name, put_time_ms: copy.put_time_ms }))
        .collect();
    let bytes: u64 = own.keys().filter_map(|at| batch.get(*at)).map(|copy| copy.length).sum();
    let limit = VERIFY_SLACK + Duration::from_secs(bytes / VERIFY_BYTES_PER_SECOND_MIN);
    let claims = CopyClaims { epoch: round.map.epoch, copies: own.values().copied().collect() };
    match shared.cluster.ask_within(owner, Request::Verify(claims), limit).await {
        Ok(Response::Verified(sound)) if sound.len() == own.len() => {
            let mut lacking = Vec::new();
            for (at, sound) in own.into_keys().zip(sound) {
                match batch.get_mut(at) {
                    Some(copy) if sound => drop(copy.confirmed.insert(owner)),
                    _ => lacking.push(at),
                }
            }
            lacking
        }
        answer => {
            tracing::debug!(%owner, ?answer, "an owner confirmed nothing");
            // Nothing is sent to a node that does not answer; without its confirmation nothing goes either.
            Vec::new()
        }
    }
}

/// Sends this node's own copy to an owner. It is read back verified first, like any other.
async fn send(shared: &Shared, owner: NodeId, copy: &Surplus) -> Result<(), String> {
    let download =
        shared.cluster.get_from(copy.name, Some(shared.id), None).await.map_err(|error| error.to_string())?;
    let whole = copy.length <= lazaret_protocol::limits::HELD_BYTES_MAX as u64;
    let target = if whole {
        PutTarget::Whole { name: copy.name, length: copy.length }
    } else {
        PutTarget::Streamed { upload: UploadId(shared.environment.random_bytes()), placement: copy.placement }
    };
    let header = PutHeader { put_time_ms: copy.put_time_ms, lease_ms: UPLOAD_LEASE_MAX_MS, target };
    let sent = shared.cluster.put_copy(owner, header, copy.name, copy.length, download.into_stream()).await;
    sent.map(|_| ()).map_err(|error| error.to_string())
}
