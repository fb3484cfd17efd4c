//! What the tests of this crate share.

use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;

use crate::sample::Sample;
use crate::source::{BlobSource, BlobWriter, SourceError};

/// The EICAR test file. It is written backwards, so that neither this source nor the test program holds it.
pub fn eicar() -> Vec<u8> {
    br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X".iter().rev().copied().collect()
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

    fn store(&self) -> Result<Box<dyn BlobWriter + '_>, SourceError> {
        Err(SourceError::Store { reason: "read-only".into() })
    }
}
