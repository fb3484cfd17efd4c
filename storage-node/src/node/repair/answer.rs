//! The other end of a comparison: what this node holds that it and the asking node should both hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use lazaret_protocol::limits::REPAIR_ITEMS_MAX;
use lazaret_protocol::message::{
    CopyClaims, DayDigest, ErrorCode, ErrorReply, RepairItem, RepairItems, RepairPage, RepairScope,
};
use lazaret_protocol::{BlobName, ClusterMap, NodeId};

use super::PAGE_ENTRIES;
use super::share::{self, View};
use crate::engine::EngineError;
use crate::node::Shared;
use crate::store::Store;

/// Most items that one name has, so that a page ends between two names.
const ITEMS_A_NAME_MAX: usize = 4;

/// Digests of a partition, one a day that has items.
pub(crate) async fn digests(shared: &Shared, scope: RepairScope) -> Result<Vec<DayDigest>, ErrorReply> {
    let map = agreed(shared, scope.epoch)?;
    let own = shared.id;
    let work = move |store: Store| {
        let mut digests: BTreeMap<u32, DayDigest> = BTreeMap::new();
        walk(&store, &map, own, &scope, None, &mut |item| {
            let day = item.day();
            digests.entry(day).or_insert(DayDigest { day, ..DayDigest::default() }).add(&item);
            true
        })?;
        Ok(digests.into_values().collect())
    };
    done(shared.blocking(work).await)
}

/// A page of the items of one day.
pub(crate) async fn items(shared: &Shared, page: RepairPage) -> Result<RepairItems, ErrorReply> {
    let map = agreed(shared, page.scope.epoch)?;
    let own = shared.id;
    let work = move |store: Store| {
        let mut items = Vec::new();
        let next = walk(&store, &map, own, &page.scope, page.after, &mut |item| {
            if item.day() == page.day {
                items.push(item);
            }
            items.len() + ITEMS_A_NAME_MAX <= REPAIR_ITEMS_MAX
        })?;
        Ok(RepairItems { items, next })
    };
    done(shared.blocking(work).await)
}

/// Which of the claimed copies are here and sound: each is read from the disk.
pub(crate) async fn verify(shared: &Shared, claims: CopyClaims) -> Result<Vec<bool>, ErrorReply> {
    let CopyClaims { epoch, copies: claims } = claims;
    if claims.len() > REPAIR_ITEMS_MAX {
        let message = format!("{} copies are over the limit of {REPAIR_ITEMS_MAX}", claims.len());
        return Err(ErrorReply { code: ErrorCode::BadRequest, message });
    }
    // What is confirmed here is not given up meanwhile; and not afterwards, see `surplus::give_up`.
    let _standing = shared.giving_up.read().await;
    agreed(shared, epoch)?;
    let work = move |store: Store| {
        claims
            .iter()
            .map(|claim| {
                let entry = store.entry(claim.name)?;
                Ok(share::holds(entry.as_ref(), claim) && store.verify(claim.name)?)
            })
            .collect()
    };
    done(shared.blocking(work).await)
}

/// The map that both ends go by.
fn agreed(shared: &Shared, epoch: u64) -> Result<Arc<ClusterMap>, ErrorReply> {
    let map = shared.cluster.map();
    if map.epoch == epoch {
        return Ok(map);
    }
    let message = format!("this node holds epoch {}, the other one {epoch}", map.epoch);
    Err(ErrorReply { code: ErrorCode::OtherEpoch, message })
}

/// Shows all items of a comparison to `take`, in the order of their names, until it wants no more names; returns the last
/// name it was shown then.
fn walk(
    store: &Store,
    map: &ClusterMap,
    own: NodeId,
    scope: &RepairScope,
    after: Option<BlobName>,
    take: &mut dyn FnMut(RepairItem) -> bool,
) -> Result<Option<BlobName>, EngineError> {
    let view = View { map, lost: &scope.lost };
    let mut after = after.max(share::before_partition(scope.partition));
    loop {
        let page = store.entries(after, Some(share::end_of_partition(scope.partition)), PAGE_ENTRIES)?;
        for (name, entry) in &page {
            let mut more = true;
            for item in share::items(*name, entry).filter(|item| view.is_shared(item, own, scope.node)) {
                more &= take(item);
            }
            if !more {
                return Ok(Some(*name));
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE_ENTRIES => after = Some(*last),
            _ => return Ok(None),
        }
    }
}

fn done<T>(outcome: Option<Result<T, EngineError>>) -> Result<T, ErrorReply> {
    match outcome {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(ErrorReply { code: error.code(), message: error.to_string() }),
        None => Err(ErrorReply { code: ErrorCode::Internal, message: "the node failed while reading".to_owned() }),
    }
}
