//! The budget of uploads in flight: how many, and how much memory they may take together, shared fairly among callers.
//!
//! **Invariants.** A place is taken before the first byte of a body is read and given back when the upload ends, however
//! it ends. Nobody waits for a place: a client that is told to come back later holds no memory here.
//!
//! What one caller may hold follows from what is free (the rule of dynamic thresholds, known from switches that share
//! buffers): up to [`FREE_TIMES`] times the free part. So a lone caller has nearly everything, callers that want more than
//! their share end up with equal ones, whoever wants less gets all of it, and something is always free for who comes new.
//! Nobody needs to be thrown out for that, and nothing needs to know who else is active.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_protocol::limits::{HELD_BYTES_MAX, MIB};

use crate::access::Caller;

/// What one upload may hold beyond the bytes kept for placement: pieces on their way to replicas and to the digests.
pub(crate) const WINDOW_BYTES: u64 = 4 * MIB;

/// How many times the free part one caller may hold: alone it has 8/9 of everything, of two busy ones each has 8/17.
const FREE_TIMES: u64 = 8;

/// Whether a caller that holds `mine` of a thing may have `need` more, of which there are `max` and `used` are held by all.
/// Who holds nothing yet gets what there is.
pub(crate) fn is_fair(max: u64, used: u64, mine: u64, need: u64) -> bool {
    let free = used.checked_add(need).and_then(|used| max.checked_sub(used));
    free.is_some_and(|free| mine == 0 || mine.saturating_add(need) <= free.saturating_mul(FREE_TIMES))
}

/// The budget, shared by all uploads.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    bytes_max: u64,
    uploads_max: u64,
    held: Arc<Mutex<Held>>,
}

/// What is held, by all and by each.
#[derive(Debug, Default)]
struct Held {
    all: Share,
    /// Whoever holds nothing is not in it, so it has no more entries than there are uploads.
    of: HashMap<Caller, Share>,
}

/// A part of the budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) bytes: u64,
    pub(crate) uploads: u64,
}

impl Share {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.uploads = self.uploads.saturating_add(1);
    }

    fn remove(&mut self, bytes: u64) {
        debug_assert!(self.bytes >= bytes && self.uploads >= 1, "what is given back was held");
        self.bytes = self.bytes.saturating_sub(bytes);
        self.uploads = self.uploads.saturating_sub(1);
    }
}

/// A place in the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Admission,
    caller: Caller,
    bytes: u64,
}

impl Admission {
    pub(crate) fn new(bytes_max: u64, uploads_max: usize) -> Self {
        let uploads_max = u64::try_from(uploads_max).unwrap_or(u64::MAX);
        Self { bytes_max: bytes_max.max(1), uploads_max: uploads_max.max(1), held: Arc::default() }
    }

    /// A place for a body of `declared_bytes`, or none when the budget is spent, or the caller's share of it.
    pub(crate) fn admit(&self, caller: &Caller, declared_bytes: u64) -> Option<Place> {
        // A budget below one upload's need would refuse large files for ever: an upload is charged the whole budget at
        // most, and then goes alone.
        let bytes = declared_bytes.min(HELD_BYTES_MAX as u64 + WINDOW_BYTES).clamp(1, self.bytes_max);
        let mut held = self.held();
        let (all, mine) = (held.all, held.of.get(caller).copied().unwrap_or_default());
        let fits = is_fair(self.bytes_max, all.bytes, mine.bytes, bytes)
            && is_fair(self.uploads_max, all.uploads, mine.uploads, 1);
        if !fits {
            return None;
        }
        held.all.add(bytes);
        held.of.entry(caller.clone()).or_default().add(bytes);
        Some(Place { admission: self.clone(), caller: caller.clone(), bytes })
    }

    /// What all uploads hold.
    pub(crate) fn in_use(&self) -> Share {
        self.held().all
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing panics under the lock, so that what it guards is whole even if it is called poisoned.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.admission.held();
        held.all.remove(self.bytes);
        if let Entry::Occupied(mut entry) = held.of.entry(self.caller.clone()) {
            entry.get_mut().remove(self.bytes);
            if entry.get().uploads == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lazaret_protocol::limits::KIB;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller::User(name.to_owned())
    }

    /// What the caller gets if it wants as much as it can have.
    fn all_of(admission: &Admission, caller: &Caller, bytes: u64) -> Vec<Place> {
        std::iter::from_fn(|| admission.admit(caller, bytes)).collect()
    }

    #[test]
    fn memory_and_count_are_both_bounded_and_given_back() {
        let admission = Admission::new(10 * KIB, 3);
        let [ann, bob] = [caller("ann"), caller("bob")];
        let big = admission.admit(&ann, 8 * KIB).unwrap();
        assert!(admission.admit(&bob, 4 * KIB).is_none(), "8 + 4 KiB do not fit in 10");
        let small = admission.admit(&bob, 1).unwrap();
        let other = admission.admit(&caller("eve"), 1).unwrap();
        assert!(admission.admit(&caller("joe"), 1).is_none(), "three uploads are the bound");
        drop((small, other, big));
        assert_eq!(admission.in_use(), Share::default());
        assert!(admission.held().of.is_empty());
        assert!(admission.admit(&ann, 10 * KIB).is_some());
    }

    #[test]
    fn a_large_body_is_charged_its_window_and_goes_alone_in_a_small_budget() {
        let admission = Admission::new(64 * MIB, 100);
        let places = all_of(&admission, &caller("ann"), 1 << 40);
        assert_eq!(places.len(), 7, "4 MiB held and 4 MiB window each, and one place is left for others");
        assert!(admission.admit(&caller("bob"), 1 << 40).is_some());
        let tiny = Admission::new(1, 100);
        let alone = tiny.admit(&caller("ann"), 1 << 40).unwrap();
        assert!(tiny.admit(&caller("bob"), 1).is_none());
        drop(alone);
        assert!(tiny.admit(&caller("bob"), 1).is_some());
    }

    #[test]
    fn who_floods_leaves_room_and_comes_down_to_an_equal_share_as_its_uploads_end() {
        let admission = Admission::new(1000 * MIB, 900);
        let [flood, modest, second] = ["flood", "modest", "second"].map(caller);
        let mut flooding = all_of(&admission, &flood, 1);
        assert_eq!(flooding.len(), 800, "eight ninths of all places");
        // Who wants little gets it at once, and again and again.
        for _ in 0..10 {
            let some: Vec<Place> = (0..50).map(|_| admission.admit(&modest, 1).unwrap()).collect();
            assert!(admission.admit(&flood, 1).is_none());
            drop(some);
        }
        // Two that want everything: whatever the first gives back, the second gets, until both have the same.
        let mut other = all_of(&admission, &second, 1);
        while flooding.len() > other.len() + 1 {
            drop(flooding.pop());
            if let Some(place) = admission.admit(&flood, 1) {
                flooding.push(place);
                break;
            }
            other.extend(all_of(&admission, &second, 1));
        }
        let (first, second) = (flooding.len() as f64, other.len() as f64);
        assert!((0.9..1.12).contains(&(first / second)), "{first} and {second}");
        assert!(first + second > 800.0, "{first} and {second}");
        assert!(admission.admit(&modest, 1).is_some());
    }

    #[test]
    fn shares_of_bytes_are_fair_as_well() {
        let admission = Admission::new(256 * MIB, 1000);
        let _flooding = all_of(&admission, &caller("flood"), 8 * MIB);
        let modest: Vec<Place> = (0..3).map_while(|_| admission.admit(&caller("modest"), 8 * MIB)).collect();
        assert_eq!(modest.len(), 3);
    }

    #[test]
    fn fairness_does_not_overflow() {
        assert!(!is_fair(u64::MAX, u64::MAX, 1, 1));
        assert!(is_fair(u64::MAX, 0, u64::MAX / 2, 1));
        assert!(!is_fair(10, 20, 0, 0), "more is held than there is: after the bound was lowered");
    }
}
