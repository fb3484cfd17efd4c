//! temporary
#![allow(missing_docs)]
use std::sync::Arc;
use bytes::Bytes;
use lazaret_protocol::message::*;
use lazaret_protocol::*;
use crate::engine::*;
use crate::index::Entry;
use crate::record::SegmentAddress;
#[derive(Clone)]
pub struct Store(Engine, Arc<dyn crate::Disk>);
pub struct Scrubbed { pub bytes: u64, pub damaged_records: u64, pub names: Vec<BlobName> }
impl Store {
  pub fn with(engine: Engine, disk: Arc<dyn crate::Disk>) -> Self { Self(engine, disk) }
  pub async fn put_whole(&self, n: BlobName, c: Bytes, t: u64, o: Origin) -> Result<PutDone, EngineError> { self.0.put_whole(n, c, t, o).await }
  pub fn begin_upload(&self, u: UploadId, p: PlacementKey, t: u64, o: Origin) -> Result<EngineUpload, EngineError> { self.0.begin_upload(u, p, t, o) }
  pub async fn put_locator(&self, p: PutLocator, o: Origin) -> Result<(), EngineError> { self.0.put_locator(p, o).await }
  pub fn stat(&self, n: BlobName) -> Result<BlobStat, EngineError> { self.0.stat(n) }
  pub fn open_blob(&self, n: BlobName) -> Result<Option<BlobReader>, EngineError> { self.0.open_blob(n) }
  pub fn status(&self) -> NodeStatus { self.0.status() }
  pub async fn delete(&self, t: Tombstone) -> Result<(), EngineError> { self.0.delete(t).await }
  pub async fn hold(&self, t: Hold) -> Result<(), EngineError> { self.0.hold(t).await }
  pub fn entry(&self, n: BlobName) -> Result<Option<Entry>, EngineError> { self.0.entry(n) }
  pub fn entries(&self, n: Option<BlobName>, l: usize) -> Result<Vec<(BlobName, Entry)>, EngineError> { self.0.entries(n, l) }
  pub fn verify(&self, n: BlobName) -> Result<bool, EngineError> { self.0.verify(n) }
  pub async fn forget(&self, n: BlobName, t: u64) -> Result<bool, EngineError> { self.0.forget(n, t).await }
  pub fn horizon(&self) -> u32 { self.0.horizon() }
  pub fn expirable(&self, b: u32) -> Expirable { self.0.expirable(b) }
  pub async fn expire(&self, b: u32) -> Result<Expirable, EngineError> { self.0.expire(b) }
  pub async fn compact(&self, _: f64) -> Result<Option<u64>, EngineError> { Ok(None) }
  pub fn sealed_segments(&self) -> Result<Vec<(usize, SegmentAddress)>, EngineError> { Ok(Vec::new()) }
  pub async fn scrub_segment(&self, _: usize, _: SegmentAddress, _: u64) -> Result<Scrubbed, EngineError> { Ok(Scrubbed { bytes: 0, damaged_records: 0, names: Vec::new() }) }
  pub fn report(&self) -> Vec<DiskReport> { vec![self.0.report()] }
  pub fn read_small(&self, n: &str) -> Result<Option<Vec<u8>>, EngineError> { Ok(self.1.read_small(n)?) }
  pub fn write_small(&self, n: &str, c: &[u8]) -> Result<(), EngineError> { Ok(self.1.write_small(n, c)?) }
  pub fn close(&self) { self.0.close() }
}
