//! What the tests of this crate share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_analysis::FileInfo;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;

use crate::engine::{Engine, EngineVerdict, ScanContext, Subject};
use crate::sample::Sample;
use crate::source::{BlobSource, SourceError};

/// The EICAR test file. It is written backwards, so that neither this source nor the test program holds it.
pub fn eicar() -> Vec<u8> {
    br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X".iter().rev().copied().collect()
}

/// What an engine says of a sample of which nothing more is known.
pub fn judge(engine: &dyn Engine, sample: &Sample, context: &ScanContext) -> EngineVerdict {
    let file = FileInfo { display_name: sample.name().to_owned(), size_bytes: sample.length(), ..FileInfo::default() };
    engine.scan(&Subject { sample, file: &file, confined: None }, context)
}

/// Waits for what another thread does. Ten seconds is long past what any of it takes.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A blob of zeros with something at one place, made as it is read.
pub struct LazyBlob {
    length: u64,
    offset: u64,
    planted: Vec<u8>,
}

impl LazyBlob {
    /// A remote sample over such a blob.
    pub fn sample(length: u64, offset: u64, planted: &[u8]) -> Sample {
        let source = Arc::new(Self { length, offset, planted: planted.to_vec() });
        Sample::remote("lazy", BlobName([0; 32]), length, source)
    }
}

impl BlobSource for LazyBlob {
    fn read(&self, _: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        let end = range.end.min(self.length);
        let mut bytes = vec![0; (end - range.start) as usize];
        for (at, byte) in self.planted.iter().enumerate() {
            let place = self.offset + at as u64;
            if (range.start..end).contains(&place) {
                bytes[(place - range.start) as usize] = *byte;
            }
        }
        Ok(bytes.into())
    }
}
