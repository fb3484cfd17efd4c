//! The cluster map on this node: kept on disk, replaced by an administrator one epoch at a time, learned from peers that
//! are further on.
//!
//! Invariants: a map that was confirmed to an administrator is on disk; a node never goes back to an older map; of two maps
//! of one epoch the one that came first stays, and the other is refused and reported; what is on disk follows what is in
//! force, one writer at a time.

use std::sync::Arc;

use lazaret_node_client::Cluster;
use lazaret_protocol::ClusterMap;
use lazaret_protocol::message::{ErrorCode, ErrorReply};
use tokio::sync::Mutex;

use super::Shared;
use crate::store::Store;

const FILE: &str = "map.yml";

/// The map that is known to be on disk. Whoever writes it, or confirms one, holds the lock.
pub(crate) type Kept = Mutex<Option<Arc<ClusterMap>>>;

/// The newest map that a store's disks remember, if there is one that can be used.
pub fn kept(store: &Store) -> Option<ClusterMap> {
    let texts = match store.read_small(FILE) {
        Ok(texts) => texts,
        Err(error) => {
            tracing::error!(%error, "the map kept on disk can't be read; the configured one is used");
            return None;
        }
    };
    let usable = |text: Vec<u8>| {
        let text = String::from_utf8_lossy(&text);
        let map: ClusterMap = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
        map.validate().map_err(|error| error.to_string())?;
        Ok::<_, String>(map)
    };
    let maps = texts.into_iter().filter_map(|text| {
        usable(text).inspect_err(|error| tracing::error!(error, "a map kept on disk is damaged")).ok()
    });
    maps.max_by_key(|map| map.epoch)
}

/// Puts the map that the store remembers in force, if it is newer than the cluster's.
pub(super) fn restore(store: &Store, cluster: &Cluster) {
    if let Some(map) = kept(store).filter(|map| map.epoch > cluster.map().epoch)
        && let Err(error) = cluster.adopt(map)
    {
        tracing::error!(%error, "the map kept on disk can't be used; the configured one is");
    }
}

/// Keeps every map that comes into force on disk.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut maps = shared.cluster.watch_map();
    maps.mark_changed();
    while let Some(Ok(())) = shared.until(maps.changed()).await {
        let mut kept = shared.kept_map.lock().await;
        // Another may have come into force while an earlier one was written.
        let map = Arc::clone(&maps.borrow_and_update());
        tracing::info!(node = %shared.id, epoch = map.epoch, "cluster map in force");
        if let Err(reply) = write(&shared, &mut kept, map).await {
            tracing::error!(error = reply.message, "the cluster map is not kept on disk");
        }
        shared.repair.wake();
    }
}

/// Replaces the map at an administrator's wish: with one made from the map in force.
pub(crate) async fn replace(shared: &Shared, map: ClusterMap) -> Result<(), ErrorReply> {
    let refused = |message: String| ErrorReply { code: ErrorCode::MapRefused, message };
    let mut kept = shared.kept_map.lock().await;
    let current = shared.cluster.map();
    if map == *current {
        return write(shared, &mut kept, current).await;
    }
    if map.epoch != current.epoch + 1 {
        let message = format!(
            "this node holds epoch {}, which is followed by {}, not by {}",
            current.epoch,
            current.epoch + 1,
            map.epoch
        );
        return Err(refused(message));
    }
    map.validate().map_err(|error| refused(error.to_string()))?;
    if map.cluster != current.cluster {
        return Err(refused("it is the map of another cluster".to_owned()));
    }
    write(shared, &mut kept, Arc::new(map.clone())).await?;
    // Refused if a peer's came first meanwhile; that one is then written over this one.
    shared.cluster.adopt(map).map(|_| ()).map_err(|error| refused(error.to_string()))
}

async fn write(shared: &Shared, kept: &mut Option<Arc<ClusterMap>>, map: Arc<ClusterMap>) -> Result<(), ErrorReply> {
    if kept.as_ref() == Some(&map) {
        return Ok(());
    }
    let internal = |message: String| ErrorReply { code: ErrorCode::Internal, message };
    let text = serde_saphyr::to_string(&*map).map_err(|error| internal(error.to_string()))?;
    // Forgotten first: after a failure nobody knows what is there.
    *kept = None;
    let written = shared.blocking(move |store| store.write_small(FILE, text.as_bytes())).await;
    match written {
        Some(Ok(())) => {
            *kept = Some(map);
            Ok(())
        }
        Some(Err(error)) => Err(internal(error.to_string())),
        None => Err(internal("writing the map failed".to_owned())),
    }
}
