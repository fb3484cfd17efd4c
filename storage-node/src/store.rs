//! temporary
#![allow(missing_docs, unused, clippy::todo, clippy::unimplemented)]
use crate::engine::*;
use crate::index::Entry;
use crate::record::SegmentAddress;
use lazaret_protocol::message::*;
use lazaret_protocol::*;
pub type Store = Engine;
pub struct Scrubbed {
    pub bytes: u64,
    pub damaged_records: u64,
    pub names: Vec<BlobName>,
}
impl Engine {
    pub async fn compact(&self, s: f64) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }
    pub fn sealed_segments(&self) -> Result<Vec<(usize, SegmentAddress)>, EngineError> {
        Ok(vec![])
    }
    pub async fn scrub_segment(&self, d: usize, a: SegmentAddress, p: u64) -> Result<Scrubbed, EngineError> {
        unimplemented!()
    }
}
