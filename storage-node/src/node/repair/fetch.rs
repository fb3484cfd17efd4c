//! Brings to this node what another one has and this one lacks.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream};
use lazaret_node_client::stream::Pieces;
use lazaret_protocol::limits::{BUCKET_MS, HELD_BYTES_MAX};
use lazaret_protocol::message::{RepairItem, RepairItems, RepairPage, RepairScope, Request, Response};
use lazaret_protocol::{BlobName, NodeId, PlacementKey, UploadId};

use super::{Left, Round};
use crate::engine::{EngineError, Origin};
use crate::index::{BlobEntry, Entry};
use crate::node::Shared;
use crate::store::Store;

/// A copy to fetch.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    name: BlobName,
    length: u64,
    put_time_ms: u64,
    placement: PlacementKey,
}

/// Fetches what is missing of one day, page by page.
pub(super) async fn day(round: &Round, peer: NodeId, scope: &RepairScope, day: u32) -> Left {
    let mut left = Left::default();
    let mut after = None;
    loop {
        let page = RepairPage { scope: scope.clone(), day, after };
        let items = match round.shared.cluster.ask(peer, Request::RepairItems(page)).await {
            Ok(Response::RepairItems(items)) => items,
            answer => {
                tracing::debug!(%peer, day, ?answer, "a node could not be compared with");
                left.undone = true;
                return left;
            }
        };
        let RepairItems { items, next } = items;
        left.and(take(round, peer, items).await);
        // A peer that does not get on is not asked for ever.
        if next.is_none() || next <= after || round.shared.is_stopping() {
            return left;
        }
        after = next;
    }
}

async fn take(round: &Round, peer: NodeId, items: Vec<RepairItem>) -> Left {
    let shared = &round.shared;
    let lacked = shared.blocking(move |store| lacking(&store, items)).await;
    let Some(Ok(lacked)) = lacked else { return Left { undone: true, done: false } };
    let mut left = Left { done: !lacked.is_empty(), undone: false };
    let mut wanted = Vec::new();
    for item in lacked {
        let stored = match item {
            RepairItem::Blob { name, length, put_time_ms, placement } => {
                shared.repair.missing_blobs.fetch_add(1, Ordering::Relaxed);
                shared.repair.missing_bytes.fetch_add(length, Ordering::Relaxed);
                wanted.push(Wanted { name, length, put_time_ms, placement });
                continue;
            }
            RepairItem::Locator(put) => shared.store.put_locator(put, Origin::Peer).await,
            RepairItem::Tombstone(tombstone) => shared.store.delete(tombstone).await,
            RepairItem::Hold(hold) => shared.store.hold(hold).await,
        };
        if let Err(error) = stored {
            left.undone |= !matches!(error, EngineError::Expired { .. });
            tracing::debug!(%error, "repair could not store an item");
        }
    }
    let busy = shared.foreground.is_busy(&shared.environment);
    let at_once = if busy { 1 } else { shared.options.repair_concurrency.max(1) };
    let fetches = stream::iter(wanted).map(|wanted| fetch_at_pace(round, peer, wanted)).buffer_unordered(at_once);
    let mut fetches = std::pin::pin!(fetches);
    while let Some(fetched) = fetches.next().await {
        left.undone |= !fetched;
    }
    left
}

/// Which items this node lacks, or has older.
fn lacking(store: &Store, items: Vec<RepairItem>) -> Result<Vec<RepairItem>, EngineError> {
    let mut lacked = Vec::new();
    for item in items {
        let entry = store.entry(item.name())?;
        if !has(entry.as_ref(), &item) {
            lacked.push(item);
        }
    }
    Ok(lacked)
}

fn has(entry: Option<&Entry>, item: &RepairItem) -> bool {
    let Some(entry) = entry else { return false };
    let killed = |time_ms: u64| entry.killed_until_ms.is_some_and(|until| time_ms <= until);
    match item {
        RepairItem::Blob { put_time_ms, .. } => {
            // As in the digests, puts of one bucket count as the same: a tombstone between them makes them differ.
            let bucket = put_time_ms / BUCKET_MS;
            let held = |blob: &BlobEntry| !blob.damaged && bucket <= blob.put_time_ms / BUCKET_MS;
            killed(*put_time_ms) || entry.blob.as_ref().is_some_and(held)
        }
        RepairItem::Locator(put) => {
            killed(put.put_time_ms) || entry.locator.is_some_and(|held| held.put_time_ms >= put.put_time_ms)
        }
        RepairItem::Tombstone(tombstone) => killed(tombstone.time_ms),
        RepairItem::Hold(hold) => entry.hold.is_some_and(|held| held.covers(hold)),
    }
}

/// Fetches a copy, then rests if clients want the node; false if it has to be tried again.
async fn fetch_at_pace(round: &Round, peer: NodeId, wanted: Wanted) -> bool {
    let shared = &round.shared;
    if shared.is_stopping() {
        return false;
    }
    let began = shared.environment.clock.monotonic();
    let fetched = fetch(shared, peer, wanted).await;
    let repair = &shared.repair;
    match &fetched {
        Ok(()) => {
            repair.copied_blobs.fetch_add(1, Ordering::Relaxed);
            repair.copied_bytes.fetch_add(wanted.length, Ordering::Relaxed);
            repair.missing_blobs.fetch_sub(1, Ordering::Relaxed);
            repair.missing_bytes.fetch_sub(wanted.length, Ordering::Relaxed);
        }
        Err(reason) => {
            repair.failed_blobs.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(blob = %wanted.name, %peer, reason, "a copy could not be fetched");
        }
    }
    let worked = shared.environment.clock.monotonic().saturating_sub(began);
    shared.foreground.yield_after(&shared.environment, worked).await;
    fetched.is_ok()
}

async fn fetch(shared: &Shared, peer: NodeId, wanted: Wanted) -> Result<(), String> {
    let Wanted { name, length, put_time_ms, placement } = wanted;
    let download = shared.cluster.get_from(name, Some(peer), Some(shared.id)).await;
    let mut download = download.map_err(|error| error.to_string())?;
    if download.length() != length {
        return Err(format!("{} bytes are offered, {length} were announced", download.length()));
    }
    let stored = if length <= HELD_BYTES_MAX as u64 {
        let mut content = Pieces::default();
        while let Some(piece) = download.next().await.map_err(|error| error.to_string())? {
            content.push(piece);
        }
        shared.store.put_whole(name, content, put_time_ms, Origin::Peer).await
    } else {
        let upload = UploadId(shared.environment.random_bytes());
        let mut upload = shared
            .store
            .begin_upload(upload, placement, put_time_ms, Origin::Peer)
            .map_err(|error| error.to_string())?;
        while let Some(piece) = download.next().await.map_err(|error| error.to_string())? {
            upload.append(piece).await.map_err(|error| error.to_string())?;
        }
        upload.commit(name, length).await
    };
    match stored {
        // Expired meanwhile: then there is nothing to make good.
        Ok(_) | Err(EngineError::Expired { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
