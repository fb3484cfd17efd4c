//! What clients do: put, get and look up blobs, of all sizes, some of them again and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::environment::Clock;
use lazaret_node_client::{Cluster, GetError, PutError, Stored};
use lazaret_protocol::BlobName;
use lazaret_protocol::limits::{HELD_BYTES_MAX, KIB};

use crate::environment::SimClock;
use crate::executor::Group;
use crate::model::Read;
use crate::names::{blob, nodes};
use crate::random::Decisions;
use crate::world::World;

/// A client: a process with a clock and a cluster of its own.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) cluster: Cluster,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) group: Group,
}

/// Content that no other number of the same run has.
pub(crate) fn content(number: u64, decisions: &mut Decisions) -> Bytes {
    let length = match decisions.below(100) {
        0..50 => decisions.below(200),
        50..75 => decisions.below(8 * KIB),
        75..85 => decisions.between(60 * KIB, 70 * KIB),
        85..99 => decisions.below(256 * KIB),
        _ => HELD_BYTES_MAX as u64 + decisions.below(600 * KIB),
    };
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

impl Client {
    /// Begins a put and does not wait for it.
    pub(crate) fn put(&self, content: Bytes) {
        let client = self.clone();
        let name = BlobName::of(&content);
        let number = self.world.model().put_begins(name, &content, self.clock.unix_ms());
        self.world.executor.note(format!("put {} of {} bytes", blob(name), content.len()));
        self.spawn(async move {
            let result = client.upload(content).await;
            let world = &client.world;
            world.executor.note(match &result {
                Ok(stored) => format!("put {} acknowledged by {}", blob(name), nodes(&stored.durable_on)),
                Err(error) => format!("put {} failed: {error}", blob(name)),
            });
            let ended = (world.executor.now(), client.clock.unix_ms());
            world.model().put_ended(name, number, ended, &result);
        });
    }

    /// In one piece or in several, which may trickle.
    async fn upload(&self, mut content: Bytes) -> Result<Stored, PutError> {
        let executor = &self.world.executor;
        if executor.decide(|decisions| decisions.once_in(2)) {
            return self.cluster.put(content).await;
        }
        let mut upload = self.cluster.upload();
        while !content.is_empty() {
            let (taken, pause) =
                executor.decide(|decisions| (decisions.below(content.len() as u64 + 1).max(1), decisions.below(30)));
            upload.write(content.split_to(usize::try_from(taken).unwrap_or(1))).await?;
            executor.sleep(Duration::from_millis(pause)).await;
        }
        upload.finish().await
    }

    /// Begins a get and does not wait for it.
    pub(crate) fn get(&self, name: BlobName) {
        let client = self.clone();
        self.spawn(async move {
            client.read(name).await;
        });
    }

    /// Gets a blob; false if nobody had it or answered.
    pub(crate) async fn read(&self, name: BlobName) -> bool {
        let world = &self.world;
        let began = world.executor.now();
        let result = self.fetch(name).await;
        world.executor.note(match &result {
            Ok(content) => format!("get {}: {} bytes", blob(name), content.len()),
            Err(error) => format!("get {}: {error}", blob(name)),
        });
        let now = world.now();
        world.model().read_ended(name, began, now, &Read::of(&result, |content| Read::Content(content)));
        result.is_ok()
    }

    async fn fetch(&self, name: BlobName) -> Result<Vec<u8>, GetError> {
        let mut download = self.cluster.get(name, None).await?;
        let mut content = Vec::new();
        while let Some(piece) = download.next().await? {
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }

    /// Begins a stat and does not wait for it.
    pub(crate) fn stat(&self, name: BlobName) {
        let client = self.clone();
        self.spawn(async move {
            let world = &client.world;
            let began = world.executor.now();
            let result = client.cluster.stat(name).await;
            world.executor.note(match &result {
                Ok(stat) => format!("stat {}: on {}", blob(name), nodes(&stat.held_on)),
                Err(error) => format!("stat {}: {error}", blob(name)),
            });
            let now = world.now();
            world.model().read_ended(name, began, now, &Read::of(&result, |stat| Read::Length(stat.length)));
        });
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.world.executor.spawn(self.group, Box::pin(work));
    }
}
