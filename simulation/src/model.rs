//! What must be true, judged from what clients were told and from what was done to the machines.
//!
//! The model is told of everything before and after it happens, so that it never demands more than was promised: a put that
//! was not acknowledged may appear or not, a copy that was destroyed on purpose need not be there.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::{GetError, PutError, Stored};
use lazaret_protocol::{BlobName, NodeId};
use serde::Serialize;

use crate::names;

/// The most of one blob's content that a run holds.
pub(crate) type Content = Bytes;

/// What a run did, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Puts begun.
    pub puts: u64,
    /// Puts acknowledged.
    pub acknowledged: u64,
    /// Gets and stats begun.
    pub reads: u64,
    /// Gets that returned a blob.
    pub read: u64,
    /// Gets and stats answered with `NotFound`.
    pub not_found: u64,
    /// Gets and stats that found nobody to answer.
    pub unavailable: u64,
    /// Power failures.
    pub power_losses: u64,
    /// Processes killed.
    pub kills: u64,
    /// Disks replaced by empty ones.
    pub disks_lost: u64,
    /// Links cut.
    pub cuts: u64,
    /// Disk errors injected: failed syncs and writes, full disks, flipped bits.
    pub disk_faults: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.puts += other.puts;
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.read += other.read;
        self.not_found += other.not_found;
        self.unavailable += other.unavailable;
        self.power_losses += other.power_losses;
        self.kills += other.kills;
        self.disks_lost += other.disks_lost;
        self.cuts += other.cuts;
        self.disk_faults += other.disk_faults;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} puts, {} acknowledged; {} reads, {} found, {} not found, {} unavailable; {} power losses, {} kills, \
             {} disks lost, {} cuts, {} disk faults",
            self.puts,
            self.acknowledged,
            self.reads,
            self.read,
            self.not_found,
            self.unavailable,
            self.power_losses,
            self.kills,
            self.disks_lost,
            self.cuts,
            self.disk_faults
        )
    }
}

pub(crate) struct Model {
    min_replica: usize,
    blobs: BTreeMap<BlobName, Blob>,
    violation: Option<String>,
    pub(crate) counts: Counts,
}

struct Blob {
    content: Content,
    /// When each acknowledged put was acknowledged, in virtual time.
    acknowledged: Vec<Duration>,
    /// All its copies may have been destroyed on purpose.
    may_be_lost: bool,
}

/// What a read was told.
pub(crate) enum Read<'a> {
    Content(&'a [u8]),
    Length(u64),
    NotFound,
    Unavailable,
}

impl<'a> Read<'a> {
    pub(crate) fn of<T>(result: &'a Result<T, GetError>, found: impl FnOnce(&'a T) -> Read<'a>) -> Self {
        match result {
            Ok(value) => found(value),
            Err(GetError::NotFound { .. }) => Self::NotFound,
            Err(_) => Self::Unavailable,
        }
    }
}

impl Model {
    pub(crate) fn new(min_replica: u8) -> Self {
        Self {
            min_replica: usize::from(min_replica),
            blobs: BTreeMap::new(),
            violation: None,
            counts: Counts::default(),
        }
    }

    /// The first violation there was.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(crate) fn violated(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    pub(crate) fn put_begins(&mut self, name: BlobName, content: &Content) {
        self.counts.puts += 1;
        let new = || Blob { content: content.clone(), acknowledged: Vec::new(), may_be_lost: false };
        self.blobs.entry(name).or_insert_with(new);
    }

    pub(crate) fn put_ended(&mut self, name: BlobName, now: Duration, result: &Result<Stored, PutError>) {
        let Ok(stored) = result else { return };
        self.counts.acknowledged += 1;
        let Some(blob) = self.blobs.get_mut(&name) else { return };
        blob.acknowledged.push(now);
        blob.may_be_lost = false;
        let mut holders: Vec<NodeId> = stored.durable_on.clone();
        holders.sort_unstable();
        holders.dedup();
        let (length, held) = (blob.content.len() as u64, holders.len());
        if stored.name != name || stored.length != length {
            self.violated(format!(
                "{} of {length} bytes was stored as {} of {}",
                names::blob(name),
                stored.name,
                stored.length
            ));
        }
        if held < self.min_replica {
            self.violated(format!(
                "{} was acknowledged by {held} nodes, {} are needed",
                names::blob(name),
                self.min_replica
            ));
        }
    }

    /// A read of `name` that began at `began` has ended.
    pub(crate) fn read_ended(&mut self, name: BlobName, began: Duration, read: &Read<'_>) {
        self.counts.reads += 1;
        let must_be_there = self.must_be_there(name, began);
        let content = self.blobs.get(&name).map(|blob| blob.content.clone());
        match (read, content) {
            (Read::Content(bytes), Some(content)) => {
                self.counts.read += 1;
                if content != *bytes {
                    self.violated(format!("a get of {} returned other content", names::blob(name)));
                }
            }
            (Read::Length(length), Some(content)) => {
                if content.len() as u64 != *length {
                    self.violated(format!("a stat of {} tells {length} bytes of {}", names::blob(name), content.len()));
                }
            }
            (Read::Content(_) | Read::Length(_), None) => {
                self.violated(format!("{} was found and never put", names::blob(name)))
            }
            (Read::NotFound, _) => {
                self.counts.not_found += 1;
                if must_be_there {
                    self.violated(format!("{} was acknowledged and is not found", names::blob(name)));
                }
            }
            (Read::Unavailable, _) => self.counts.unavailable += 1,
        }
    }

    /// Whether a read of `name` that began at `began` must find it, if anybody answers.
    pub(crate) fn must_be_there(&self, name: BlobName, began: Duration) -> bool {
        self.blobs.get(&name).is_some_and(|blob| !blob.may_be_lost && blob.acknowledged.iter().any(|&at| at <= began))
    }

    /// All names there are.
    pub(crate) fn names(&self) -> Vec<BlobName> {
        self.blobs.keys().copied().collect()
    }

    /// Copies were destroyed on purpose, of which there need not have been others: all but `kept` may be gone.
    pub(crate) fn may_lose(&mut self, kept: impl Fn(BlobName) -> bool) {
        for (&name, blob) in &mut self.blobs {
            if !kept(name) {
                blob.may_be_lost = true;
            }
        }
    }
}
