//! temporary
#![allow(missing_docs)]
use bytes::Bytes;
use lazaret_protocol::message::*;
use lazaret_protocol::*;
use crate::engine::*;
use crate::index::Entry;
use crate::record::SegmentAddress;
#[derive(Clone)]
pub struct Store(Engine);
impl From<Engine> for Store { fn from(engine: Engine) -> Self { Self(engine) } }
impl Store {
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
  pub fn expire(&self, b: u32) -> Result<Expirable, EngineError> { self.0.expire(b) }
  pub async fn compact(&self, s: f64) -> Result<Option<u64>, EngineError> { self.0.compact(s).await }
  pub fn sealed_segments(&self) -> Result<Vec<(usize, SegmentAddress)>, EngineError> { Ok(self.0.sealed_segments()?.into_iter().map(|a| (0, a)).collect()) }
  pub async fn scrub_segment(&self, _: usize, a: SegmentAddress, _: u64) -> Result<Scrubbed, EngineError> { self.0.scrub_segment(a, &mut |_| ()) }
  pub fn report(&self) -> DiskReport { self.0.report() }
  pub fn read_small(&self, n: &str) -> Result<Option<Vec<u8>>, EngineError> { self.0.read_small(n) }
  pub fn write_small(&self, n: &str, c: &[u8]) -> Result<(), EngineError> { self.0.write_small(n, c) }
  pub fn close(&self) { self.0.close() }
}
