//! What lies in a segment, byte by byte. All integers are little-endian; checksums are CRC32C.
//!
//! A segment begins with a header of 72 bytes:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `LAZARETS` |
//! | 8 | 4 | format version: 2 (1 is still read) |
//! | 12 | 4 | bucket: hours since the Unix epoch of the put times in it; all ones: it never expires |
//! | 16 | 8 | segment id |
//! | 24 | 16 | cluster id |
//! | 40 | 16 | node id |
//! | 56 | 8 | marker: random, the first bytes of every record of this segment |
//! | 64 | 4 | zero |
//! | 68 | 4 | CRC32C of bytes 0 to 67 |
//!
//! Records follow without gaps. A record is a header of 104 bytes and its payload:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | the segment's marker |
//! | 8 | 1 | kind: 1 blob, 2 extent, 3 tree, 4 commit, 5 locator, 6 tombstone, 7 hold |
//! | 9 | 1 | flags: bit 0, the payload is salted |
//! | 10 | 2 | zero |
//! | 12 | 4 | bytes of payload |
//! | 16 | 4 | of these, bytes of tree at its end (blob; else zero) |
//! | 20 | 4 | CRC32C of the payload as it lies on disk |
//! | 24 | 32 | blob, commit, locator, tombstone, hold: the name; extent, tree: the upload id and 16 zeros |
//! | 56 | 8 | extent: its place in the content; tree: its place in the tree; hold: see below; else zero |
//! | 64 | 8 | put time in Unix milliseconds; tombstone: the time up to which puts are killed; hold: its own time |
//! | 72 | 16 | salt, see [`crate::salt`]; zeros if not salted |
//! | 88 | 8 | how much of this segment was synced when the record was written |
//! | 96 | 4 | zero |
//! | 100 | 4 | CRC32C of bytes 0 to 99 |
//!
//! Payloads: of a blob its content and its tree; of an extent [`EXTENT_BYTES_MAX`] bytes of content (the last one fewer); of
//! a tree record [`TREE_PIECE_BYTES`] bytes of the tree (the last one fewer); of a commit the upload id (16), the length (8),
//! the placement key (32; version 1 has none), then a location for each extent and each tree record in order; of a locator
//! the placement key (32) and the length (8); of a tombstone and a hold nothing. A location is the bucket (4), the segment
//! id (8) and the offset of the record (8). A hold's place is 1 if it was placed and 0 if it was released, and in its upper
//! half the first bucket whose puts it protects.
//!
//! The marker makes a record recognisable after damage: no uploader knows it, so no content can pose as a record. The
//! synced offset proves, without the index, how far a segment was durable.

use lazaret_protocol::limits::{BLOB_BYTES_MAX, BUCKET_MS, EXTENT_BYTES_MAX, KIB};
use lazaret_protocol::message::Locator;
use lazaret_protocol::tree::tree_bytes;
use lazaret_protocol::{BlobName, ClusterId, NodeId, PlacementKey, UploadId};

use crate::salt::{self, SaltKey};

/// The version of segments, records and the data directory that this build writes.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest version that this build reads. It differs in commits alone, which tell no placement key.
pub const FORMAT_VERSION_OLDEST: u32 = 1;
/// The bucket of what is held: it never expires. No put time falls into it.
pub const HELD_BUCKET: u32 = u32::MAX;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 72;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 104;
/// Bytes of tree in one tree record: the tree of 256 MiB of content (*format*).
pub const TREE_PIECE_BYTES: usize = 256 * KIB as usize;
/// Bytes of a location.
pub const LOCATION_BYTES: usize = 20;

const SEGMENT_MAGIC: [u8; 8] = *b"LAZARETS";
const FLAG_SALTED: u8 = 1;
const COMMIT_FIXED_BYTES: usize = 56;
/// What commits of version 1 lack. It is no multiple of a location's length, so that a payload's length tells them apart.
const PLACEMENT_BYTES: usize = 32;
const HOLD_PLACED: u64 = 1;
const LOCATOR_BYTES: usize = 40;

/// The random first bytes of every record of one segment.
pub type Marker = [u8; 8];

/// Which segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentAddress {
    /// Hours since the Unix epoch of the put times in it.
    pub bucket: u32,
    /// Never used twice on a node.
    pub id: u64,
}

impl std::fmt::Display for SegmentAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{:016x}", self.bucket, self.id)
    }
}

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment it is in.
    pub segment: SegmentAddress,
    /// The offset of its header.
    pub offset: u64,
}

/// Why bytes are not what the format says should be there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another format than this build's.
    #[error(
        "format version {0} is not read by this build, which reads versions {FORMAT_VERSION_OLDEST} to {FORMAT_VERSION}"
    )]
    Version(u32),
    /// Damage, or nothing was ever written there.
    #[error("{0}")]
    Damaged(&'static str),
}

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which segment.
    pub address: SegmentAddress,
    /// Whose it is.
    pub cluster: ClusterId,
    /// Whose it is.
    pub node: NodeId,
    /// How its records begin.
    pub marker: Marker,
}

impl SegmentHeader {
    /// The header as it lies on disk.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = FixedWriter::<SEGMENT_HEADER_BYTES>::new();
        out.put(&SEGMENT_MAGIC);
        out.put(&FORMAT_VERSION.to_le_bytes());
        out.put(&self.address.bucket.to_le_bytes());
        out.put(&self.address.id.to_le_bytes());
        out.put(self.cluster.as_bytes());
        out.put(self.node.as_bytes());
        out.put(&self.marker);
        out.put(&[0; 4]);
        out.finish()
    }

    /// The header that `bytes` are.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, FormatError> {
        let mut fields = Fields::checked(bytes).ok_or(FormatError::Damaged("the segment header fails its checksum"))?;
        if fields.array() != SEGMENT_MAGIC {
            return Err(FormatError::Damaged("not a segment"));
        }
        let version = fields.u32();
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
            return Err(FormatError::Version(version));
        }
        let (bucket, id) = (fields.u32(), fields.u64());
        Ok(Self {
            address: SegmentAddress { bucket, id },
            cluster: ClusterId(fields.array()),
            node: NodeId(fields.array()),
            marker: fields.array(),
        })
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A whole blob and its tree.
    Blob,
    /// A piece of a streamed blob.
    Extent,
    /// A piece of a streamed blob's tree.
    Tree,
    /// Makes a blob of extents and tree records.
    Commit,
    /// Says where a streamed blob is placed.
    Locator,
    /// Kills every put of a name up to its time.
    Tombstone,
    /// Keeps a name from expiring, or no longer does.
    Hold,
}

impl RecordKind {
    const fn code(self) -> u8 {
        match self {
            Self::Blob => 1,
            Self::Extent => 2,
            Self::Tree => 3,
            Self::Commit => 4,
            Self::Locator => 5,
            Self::Tombstone => 6,
            Self::Hold => 7,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Blob,
            2 => Self::Extent,
            3 => Self::Tree,
            4 => Self::Commit,
            5 => Self::Locator,
            6 => Self::Tombstone,
            7 => Self::Hold,
            _ => return None,
        })
    }

    /// Whether lengths are ones that a record of this kind can have. It bounds what a reader allocates.
    fn bears(self, payload_bytes: u32, tree: u32) -> bool {
        let payload = u64::from(payload_bytes);
        let whole = EXTENT_BYTES_MAX as u64;
        match self {
            Self::Blob => payload
                .checked_sub(u64::from(tree))
                .is_some_and(|content| content <= whole && tree_bytes(content) == u64::from(tree)),
            _ if tree != 0 => false,
            Self::Extent => payload > 0 && payload <= whole,
            Self::Tree => payload > 0 && payload <= TREE_PIECE_BYTES as u64,
            Self::Commit => {
                payload >= (COMMIT_FIXED_BYTES - PLACEMENT_BYTES) as u64 && payload <= commit_bytes(BLOB_BYTES_MAX)
            }
            Self::Locator => payload == LOCATOR_BYTES as u64,
            Self::Tombstone | Self::Hold => payload == 0,
        }
    }
}

/// Whom a record is about: a blob's name, or an upload id and zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject(pub [u8; 32]);

impl From<BlobName> for Subject {
    fn from(name: BlobName) -> Self {
        Self(name.0)
    }
}

impl From<UploadId> for Subject {
    fn from(upload: UploadId) -> Self {
        let mut bytes = [0; 32];
        let (front, _) = bytes.split_at_mut(UploadId::BYTES);
        front.copy_from_slice(upload.as_bytes());
        Self(bytes)
    }
}

impl Subject {
    /// The subject as a name.
    pub fn name(&self) -> BlobName {
        BlobName(self.0)
    }

    /// The subject as an upload id.
    pub fn upload(&self) -> UploadId {
        let mut bytes = [0; UploadId::BYTES];
        bytes.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        UploadId(bytes)
    }
}

/// The first bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// The segment's marker.
    pub marker: Marker,
    /// What the record is.
    pub kind: RecordKind,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// Of these, bytes of tree.
    pub tree_bytes: u32,
    /// CRC32C of the payload as it lies on disk.
    pub payload_crc: u32,
    /// Whom the record is about.
    pub subject: Subject,
    /// The place in content or tree of an extent or a tree record; what a hold says, see [`hold_position`].
    pub position: u64,
    /// The put time, or a tombstone's or a hold's own time.
    pub time_ms: u64,
    /// The payload's salt, if it is salted.
    pub salt: Option<SaltKey>,
    /// How much of the segment was synced when the record was written.
    pub synced: u64,
}

impl RecordHeader {
    /// The header as it lies on disk.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = FixedWriter::<RECORD_HEADER_BYTES>::new();
        out.put(&self.marker);
        out.put(&[self.kind.code(), if self.salt.is_some() { FLAG_SALTED } else { 0 }, 0, 0]);
        out.put(&self.payload_bytes.to_le_bytes());
        out.put(&self.tree_bytes.to_le_bytes());
        out.put(&self.payload_crc.to_le_bytes());
        out.put(&self.subject.0);
        out.put(&self.position.to_le_bytes());
        out.put(&self.time_ms.to_le_bytes());
        out.put(&self.salt.unwrap_or_default());
        out.put(&self.synced.to_le_bytes());
        out.put(&[0; 4]);
        out.finish()
    }

    /// The header that `bytes` are.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, FormatError> {
        let mut fields = Fields::checked(bytes).ok_or(FormatError::Damaged("the record header fails its checksum"))?;
        let marker = fields.array();
        let [kind, flags, _, _] = fields.array();
        let kind = RecordKind::of_code(kind).ok_or(FormatError::Damaged("a record of unknown kind"))?;
        if flags & !FLAG_SALTED != 0 {
            return Err(FormatError::Damaged("a record with unknown flags"));
        }
        let (payload_bytes, tree_bytes, payload_crc) = (fields.u32(), fields.u32(), fields.u32());
        if !kind.bears(payload_bytes, tree_bytes) {
            return Err(FormatError::Damaged("a record of impossible length"));
        }
        let subject = Subject(fields.array());
        let (position, time_ms) = (fields.u64(), fields.u64());
        let salt: SaltKey = fields.array();
        let salt = (flags & FLAG_SALTED != 0).then_some(salt);
        let synced = fields.u64();
        Ok(Self { marker, kind, payload_bytes, tree_bytes, payload_crc, subject, position, time_ms, salt, synced })
    }

    /// Bytes of header and payload.
    pub fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// Salts or unsalts what lies at `position` of the payload, if the record is salted.
    pub fn unsalt(&self, position: u32, bytes: &mut [u8]) {
        if let Some(key) = &self.salt {
            salt::apply(key, position, bytes);
        }
    }
}

/// A buffer to write a payload into that leaves space for the header in front.
pub fn record_buffer(payload_bytes: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(RECORD_HEADER_BYTES + payload_bytes);
    buffer.resize(RECORD_HEADER_BYTES, 0);
    buffer
}

/// A record that only lacks its place: salted, checksummed, in one buffer.
#[derive(Debug, Clone)]
pub struct PreparedRecord {
    header: RecordHeader,
    bytes: Vec<u8>,
}

impl PreparedRecord {
    /// Salts the payload in `buffer` (see [`record_buffer`]) in place and takes its checksum. `tree` of its last bytes are
    /// the blob's tree.
    pub fn new(
        kind: RecordKind,
        subject: Subject,
        position: u64,
        time_ms: u64,
        tree: usize,
        salt: Option<SaltKey>,
        mut buffer: Vec<u8>,
    ) -> Self {
        let payload = buffer.get_mut(RECORD_HEADER_BYTES..).unwrap_or_default();
        if let Some(key) = &salt {
            salt::apply(key, 0, payload);
        }
        // Callers keep payloads within the limits of their kind, which are far under 32 bits.
        debug_assert!(kind.bears(payload.len() as u32, tree as u32));
        let header = RecordHeader {
            marker: Marker::default(),
            kind,
            payload_bytes: payload.len() as u32,
            tree_bytes: tree as u32,
            payload_crc: crc32c::crc32c(payload),
            subject,
            position,
            time_ms,
            salt,
            synced: 0,
        };
        Self { header, bytes: buffer }
    }

    /// A record read from another segment, to be written again as it is. `buffer` leaves space for the header in front.
    pub fn copied(header: RecordHeader, buffer: Vec<u8>) -> Self {
        Self { header, bytes: buffer }
    }

    /// The header, whose marker and synced offset are not yet set.
    pub fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The record with another time.
    pub fn at_time(mut self, time_ms: u64) -> Self {
        self.header.time_ms = time_ms;
        self
    }

    /// Bytes of header and payload.
    pub fn record_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes to write, once it is known where to.
    pub fn placed(mut self, marker: Marker, synced: u64) -> Vec<u8> {
        self.header.marker = marker;
        self.header.synced = synced;
        if let Some(front) = self.bytes.first_chunk_mut() {
            *front = self.header.encode();
        }
        self.bytes
    }
}

/// A commit's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The upload whose extents these are.
    pub upload: UploadId,
    /// The blob's length in bytes.
    pub length: u64,
    /// Where the blob is placed; `None` in version 1, where its first extent tells.
    pub placement: Option<PlacementKey>,
    /// Where its extents lie, in order.
    pub extents: Vec<Location>,
    /// Where the records of its tree lie, in order.
    pub tree: Vec<Location>,
}

/// How many extents a streamed blob of `length` bytes has.
pub fn extent_count(length: u64) -> usize {
    length.div_ceil(EXTENT_BYTES_MAX as u64) as usize
}

/// How many tree records a streamed blob of `length` bytes has.
pub fn tree_piece_count(length: u64) -> usize {
    tree_bytes(length).div_ceil(TREE_PIECE_BYTES as u64) as usize
}

/// Bytes of the record of a whole blob of `length` bytes.
pub fn whole_record_bytes(length: u64) -> u64 {
    RECORD_HEADER_BYTES as u64 + length + tree_bytes(length)
}

/// Bytes of the record of piece `at` of those that together hold `total` bytes, `each` in all but the last.
pub fn piece_record_bytes(at: usize, total: u64, each: usize) -> u64 {
    RECORD_HEADER_BYTES as u64 + total.saturating_sub(at as u64 * each as u64).min(each as u64)
}

fn commit_bytes(length: u64) -> u64 {
    (COMMIT_FIXED_BYTES + LOCATION_BYTES * (extent_count(length) + tree_piece_count(length))) as u64
}

impl Commit {
    /// Appends the payload to `buffer`.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(self.upload.as_bytes());
        buffer.extend_from_slice(&self.length.to_le_bytes());
        if let Some(placement) = &self.placement {
            buffer.extend_from_slice(&placement.0);
        }
        for location in self.extents.iter().chain(&self.tree) {
            encode_location(location, buffer);
        }
    }

    /// The commit that `payload` is.
    pub fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        const MALFORMED: FormatError = FormatError::Damaged("a malformed commit");
        let mut rest = payload;
        let upload = UploadId(take(&mut rest).ok_or(MALFORMED)?);
        let length = u64::from_le_bytes(take(&mut rest).ok_or(MALFORMED)?);
        if length > BLOB_BYTES_MAX {
            return Err(MALFORMED);
        }
        let placement = match commit_bytes(length).checked_sub(payload.len() as u64) {
            Some(0) => Some(PlacementKey(take(&mut rest).ok_or(MALFORMED)?)),
            Some(missing) if missing == PLACEMENT_BYTES as u64 => None,
            _ => return Err(MALFORMED),
        };
        let extents = decode_locations(&mut rest, extent_count(length)).ok_or(MALFORMED)?;
        let tree = decode_locations(&mut rest, tree_piece_count(length)).ok_or(MALFORMED)?;
        Ok(Self { upload, length, placement, extents, tree })
    }
}

/// The bucket of a put time. Times too far off for a bucket share the last one that expires.
pub fn bucket_of(time_ms: u64) -> u32 {
    u32::try_from(time_ms / BUCKET_MS).unwrap_or(HELD_BUCKET).min(HELD_BUCKET - 1)
}

/// The position of a hold's record: whether it was placed, and the first bucket whose puts it protects.
pub fn hold_position(placed: bool, from_bucket: u32) -> u64 {
    (u64::from(from_bucket) << 32) | if placed { HOLD_PLACED } else { 0 }
}

/// What [`hold_position`] was made of.
pub fn decode_hold_position(position: u64) -> (bool, u32) {
    (position & HOLD_PLACED != 0, (position >> 32) as u32)
}

/// Appends a locator's payload to `buffer`.
pub fn encode_locator(locator: &Locator, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&locator.placement.0);
    buffer.extend_from_slice(&locator.length.to_le_bytes());
}

/// Takes a locator off the front of `bytes`.
pub fn decode_locator(bytes: &mut &[u8]) -> Option<Locator> {
    Some(Locator { placement: PlacementKey(take(bytes)?), length: u64::from_le_bytes(take(bytes)?) })
}

/// Appends a location to `buffer`.
pub fn encode_location(location: &Location, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&location.segment.bucket.to_le_bytes());
    buffer.extend_from_slice(&location.segment.id.to_le_bytes());
    buffer.extend_from_slice(&location.offset.to_le_bytes());
}

/// Takes a location off the front of `bytes`.
pub fn decode_location(bytes: &mut &[u8]) -> Option<Location> {
    let bucket = u32::from_le_bytes(take(bytes)?);
    let id = u64::from_le_bytes(take(bytes)?);
    Some(Location { segment: SegmentAddress { bucket, id }, offset: u64::from_le_bytes(take(bytes)?) })
}

/// Takes `count` locations off the front of `bytes`. The bytes are checked before anything is allocated for the count.
pub fn decode_locations(bytes: &mut &[u8], count: usize) -> Option<Vec<Location>> {
    let (mut front, rest) = bytes.split_at_checked(count.checked_mul(LOCATION_BYTES)?)?;
    *bytes = rest;
    (0..count).map(|_| decode_location(&mut front)).collect()
}

/// Takes `N` bytes off the front of `bytes`.
pub fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (front, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*front)
}

/// Fills a header of `N` bytes, whose last four are the checksum of the others.
struct FixedWriter<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> FixedWriter<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
    }

    fn finish(mut self) -> [u8; N] {
        // The golden-bytes tests hold the layout; this holds the sums of the two callers.
        debug_assert_eq!(self.at, N - 4);
        let crc = crc32c::crc32c(self.bytes.get(..N - 4).unwrap_or_default());
        self.put(&crc.to_le_bytes());
        self.bytes
    }
}

/// Reads a header of fixed layout. Reading past the end gives zeros, which the golden-bytes tests would show.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields before the checksum, if it holds.
    fn checked(bytes: &'a [u8]) -> Option<Self> {
        let (fields, crc) = bytes.split_last_chunk::<4>()?;
        (crc32c::crc32c(fields) == u32::from_le_bytes(*crc)).then_some(Self(fields))
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        take(&mut self.0).unwrap_or([0; N])
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment_header() -> SegmentHeader {
        SegmentHeader {
            address: SegmentAddress { bucket: 0x0102_0304, id: 0x1112_1314_1516_1718 },
            cluster: ClusterId([0xc1; 16]),
            node: NodeId([0xd2; 16]),
            marker: *b"markers!",
        }
    }

    fn record() -> PreparedRecord {
        let mut buffer = record_buffer(5);
        buffer.extend_from_slice(b"hello");
        PreparedRecord::new(RecordKind::Blob, BlobName([0xab; 32]).into(), 0, 0x2122, 0, Some([0x5a; 16]), buffer)
    }

    #[test]
    fn golden_segment_header() {
        let bytes = segment_header().encode();
        let expected = concat!(
            "4c415a4152455453",
            "02000000",
            "04030201",
            "1817161514131211",
            "c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1",
            "d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2",
            "6d61726b65727321",
            "00000000",
        );
        assert_eq!(hex::encode(&bytes[..68]), expected);
        assert_eq!(bytes[68..], crc32c::crc32c(&bytes[..68]).to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Ok(segment_header()));
    }

    #[test]
    fn golden_record() {
        let bytes = record().placed(*b"markers!", 0x48);
        let expected = concat!(
            "6d61726b65727321",
            "01010000",
            "05000000",
            "00000000",
            "57568975",
            "abababababababababababababababababababababababababababababababab",
            "0000000000000000",
            "2221000000000000",
            "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
            "4800000000000000",
            "00000000",
            "c321e3c0",
            "16a18ed666",
        );
        assert_eq!(hex::encode(&bytes), expected);
        let header = RecordHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        let mut payload = bytes[RECORD_HEADER_BYTES..].to_vec();
        assert_eq!(crc32c::crc32c(&payload), header.payload_crc);
        header.unsalt(0, &mut payload);
        assert_eq!(payload, b"hello");
    }

    #[test]
    fn golden_commit_and_locator() {
        // Version 1 had no placement key.
        for (placement, written) in [(None, String::new()), (Some(PlacementKey([0x77; 32])), "77".repeat(32))] {
            golden_commit(placement, &written);
        }
        let locator = Locator { placement: PlacementKey([3; 32]), length: 0x99 };
        let mut bytes = Vec::new();
        encode_locator(&locator, &mut bytes);
        assert_eq!(hex::encode(&bytes), format!("{}9900000000000000", "03".repeat(32)));
        assert_eq!(decode_locator(&mut &bytes[..]), Some(locator));
    }

    #[test]
    fn golden_hold() {
        let name = BlobName([0xab; 32]).into();
        let position = hold_position(true, 0x0102_0304);
        let record = PreparedRecord::new(RecordKind::Hold, name, position, 0x2122, 0, None, record_buffer(0));
        let bytes = record.placed(*b"markers!", 0x48);
        assert_eq!(hex::encode(&bytes[8..12]), "07000000");
        assert_eq!(hex::encode(&bytes[56..72]), "01000000040302012221000000000000");
        assert_eq!(bytes.len(), RECORD_HEADER_BYTES);
        for (placed, bucket) in [(true, 0), (false, 7), (true, u32::MAX)] {
            assert_eq!(decode_hold_position(hold_position(placed, bucket)), (placed, bucket));
        }
    }

    fn golden_commit(placement: Option<PlacementKey>, written: &str) {
        let location = |offset| Location { segment: SegmentAddress { bucket: 7, id: 9 }, offset };
        let commit = Commit {
            upload: UploadId([0xee; 16]),
            length: EXTENT_BYTES_MAX as u64 + 1,
            placement,
            extents: vec![location(0x48), location(0x50)],
            tree: vec![location(0x60)],
        };
        let mut bytes = Vec::new();
        commit.encode(&mut bytes);
        let locations = concat!(
            "0700000009000000000000004800000000000000",
            "0700000009000000000000005000000000000000",
            "0700000009000000000000006000000000000000",
        );
        let expected = format!("{}0100400000000000{written}{locations}", "ee".repeat(16));
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(Commit::decode(&bytes), Ok(commit));
        bytes.push(0);
        assert!(Commit::decode(&bytes).is_err());
    }

    #[test]
    fn version_1_is_read_and_another_version_is_named() {
        let of_version = |version| {
            let mut bytes = segment_header().encode();
            bytes[8] = version;
            let crc = crc32c::crc32c(&bytes[..68]).to_le_bytes();
            bytes[68..].copy_from_slice(&crc);
            SegmentHeader::decode(&bytes)
        };
        assert_eq!(of_version(1), Ok(segment_header()));
        for version in [0, 3] {
            let error = of_version(version).unwrap_err();
            assert_eq!(error, FormatError::Version(version.into()));
            assert!(error.to_string().contains(&format!("version {version}")));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes = record().placed(*b"markers!", 0x48);
        let header: [u8; RECORD_HEADER_BYTES] = *bytes.first_chunk().unwrap();
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let mut damaged = header;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_longest_commit_is_one_that_readers_accept() {
        assert!(RecordKind::Commit.bears(commit_bytes(BLOB_BYTES_MAX) as u32, 0));
        assert!(commit_bytes(BLOB_BYTES_MAX) < 10 << 20);
        assert!(!RecordKind::Extent.bears(EXTENT_BYTES_MAX as u32 + 1, 0));
        assert!(!RecordKind::Blob.bears(u32::MAX, 0));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Commit::decode(&bytes);
            if let Some(header) = bytes.first_chunk() {
                let _ = RecordHeader::decode(header);
            }
            if let Some(header) = bytes.first_chunk() {
                let _ = SegmentHeader::decode(header);
            }
        }
    }
}
