//! The bytes of messages on the wire. They may only change together with `codec::VERSION`.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use lazaret_protocol::codec::{self, CodecError};
use lazaret_protocol::limits::MESSAGE_BYTES_MAX;
use lazaret_protocol::message::*;
use lazaret_protocol::{
    BlobName, ClusterId, ClusterMap, NodeEntry, NodeId, NodeState, PlacementKey, StorageType, UploadId,
};
use proptest::prelude::*;

fn map() -> ClusterMap {
    ClusterMap {
        cluster: ClusterId([9; 16]),
        epoch: 3,
        min_replica: 2,
        max_replica: 3,
        cleanuprange: 24,
        storage_type: StorageType::Salt,
        nodes: vec![NodeEntry {
            id: NodeId([1; 16]),
            name: "node1".into(),
            address: SocketAddr::from(([127, 0, 0, 1], 8890)),
            weight: 100,
            state: NodeState::Draining,
        }],
    }
}

/// Every request and every answer, with the bytes they had when they were first carried out in version 1.
fn golden() -> Vec<(Vec<u8>, &'static str)> {
    let name = BlobName([0xab; 32]);
    let locator = Locator { placement: PlacementKey([0xcd; 32]), length: 5 << 20 };
    let whole = PutTarget::Whole { name, length: 70_000 };
    let streamed = PutTarget::Streamed { upload: UploadId([0xef; 16]), placement: locator.placement };
    let scope = RepairScope { node: NodeId([1; 16]), epoch: 3, partition: 7, lost: vec![NodeId([2; 16])] };
    let header = GetHeader { length: 70_000, put_time_ms: 1_763_000_000_000 };
    let hold = Hold { name, time_ms: 2, placed: true, from_bucket: Some(3) };
    let items = vec![
        RepairItem::Blob { name, length: 70_000, put_time_ms: 1, placement: locator.placement },
        RepairItem::Locator(PutLocator { name, locator, put_time_ms: 1 }),
        RepairItem::Tombstone(Tombstone { name, time_ms: 2 }),
        RepairItem::Hold(hold),
    ];
    let report = NodeReport {
        epoch: 3,
        unreachable: vec![NodeId([2; 16])],
        disks: vec![DiskReport { path: "/d".into(), failed: Some("gone".into()), ..Default::default() }],
        repair: RepairReport { running: true, remaining_seconds: Some(9), ..Default::default() },
        ..Default::default()
    };
    let request = |request: Request| codec::encode(&request).unwrap();
    let response = |response: Response| codec::encode(&response).unwrap();
    let put = |target| request(Request::Put(PutHeader { put_time_ms: 1_763_000_000_000, lease_ms: 60_000, target }));
    vec![
        (request(Request::Hello(Hello { cluster: ClusterId([9; 16]), role: Role::Admin, proof: [5; 32] })), "hello"),
        (put(whole), "put whole"),
        (put(streamed), "put streamed"),
        (codec::encode(&PutTrailer { name, length: 70_000 }).unwrap(), "trailer"),
        (request(Request::PutLocator(PutLocator { name, locator, put_time_ms: 1 })), "put locator"),
        (request(Request::Get(GetRequest { name, range: Some(ByteRange { start: 1, end: 300 }) })), "get"),
        (request(Request::Has(vec![name])), "has"),
        (request(Request::Stat(name)), "stat"),
        (request(Request::Status), "status"),
        (request(Request::Map), "map"),
        (request(Request::PushMap(map())), "push map"),
        (request(Request::Delete(Tombstone { name, time_ms: 2 })), "delete"),
        (request(Request::RepairDigests(scope.clone())), "repair digests"),
        (request(Request::RepairItems(RepairPage { scope, day: 20_000, after: Some(name) })), "repair items"),
        (request(Request::Scrub), "scrub"),
        (request(Request::Ping(Ping { epoch: 3, now_ms: 4 })), "ping"),
        (request(Request::Hold(hold)), "hold"),
        (request(Request::Verify(CopyClaims { epoch: 3, copies: vec![CopyClaim { name, put_time_ms: 1 }] })), "verify"),
        (request(Request::Repair), "repair"),
        (request(Request::Report), "report"),
        (request(Request::RetentionPreview(24)), "retention preview"),
        (response(Response::Welcome(Welcome { node: NodeId([1; 16]), epoch: 3, now_ms: 4 })), "welcome"),
        (response(Response::Put(PutDone { put_time_ms: 1, already_held: true })), "put done"),
        (response(Response::LocatorPut), "locator put"),
        (response(Response::Get(header)), "get header"),
        (response(Response::Located(locator)), "located"),
        (response(Response::Has(vec![true, false])), "has answer"),
        (response(Response::Stat(BlobStat { held: Some(header), locator: Some(locator) })), "stat answer"),
        (
            response(Response::Status(NodeStatus { blobs: 1, syncs: 300, full: true, ..Default::default() })),
            "status answer",
        ),
        (response(Response::Map(map())), "map answer"),
        (response(Response::MapPushed), "map pushed"),
        (response(Response::Deleted), "deleted"),
        (
            response(Response::RepairDigests(vec![DayDigest { day: 20_000, items: 1, sum: [3; 16] }])),
            "repair digests answer",
        ),
        (response(Response::RepairItems(RepairItems { items, next: Some(name) })), "repair items answer"),
        (response(Response::Scrubbing), "scrubbing"),
        (response(Response::Error(ErrorReply { code: ErrorCode::Full, message: "full".into() })), "error"),
        (response(Response::Pong(Ping { epoch: 3, now_ms: 4 })), "pong"),
        (response(Response::HoldSet), "hold set"),
        (response(Response::Verified(vec![true, false])), "verified"),
        (response(Response::Repairing), "repairing"),
        (response(Response::Report(report)), "report answer"),
        (
            response(Response::RetentionPreview(Expirable { blobs: 1, bytes: 2, before_ms: 3 })),
            "retention preview answer",
        ),
        (response(Response::Absent(Absent { epoch: 3 })), "absent"),
    ]
}

#[test]
fn the_bytes_of_every_message_are_fixed() {
    let lines: Vec<String> = golden().iter().map(|(bytes, what)| format!("{what}: {}", hex::encode(bytes))).collect();
    assert_eq!(lines.join("\n"), include_str!("golden.txt").trim_end());
}

#[test]
fn messages_come_back_as_they_went() {
    for (frame, what) in golden() {
        let length = codec::frame_body_bytes(frame[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, frame.len() - 4, "{what}");
        let again = match codec::decode_body::<Request>(&frame[4..]).map(|request| codec::encode(&request)) {
            Ok(again) if again.as_ref() == Ok(&frame) => continue,
            _ => codec::decode_body::<Response>(&frame[4..]).map(|response| codec::encode(&response)),
        };
        if what != "trailer" {
            assert_eq!(again, Ok(Ok(frame)), "{what}");
        }
    }
}

#[test]
fn other_versions_long_frames_and_leftovers_are_refused() {
    let mut frame = codec::encode(&Request::Status).unwrap();
    frame.push(0);
    assert!(matches!(codec::decode_body::<Request>(&frame[4..]), Err(CodecError::Malformed(_))));
    frame.pop();
    frame[4] = 2;
    assert_eq!(codec::decode_body::<Request>(&frame[4..]), Err(CodecError::Version(2)));
    assert_eq!(codec::decode_body::<Request>(&[1]), Err(CodecError::TooShort(1)));
    assert_eq!(codec::frame_body_bytes(u32::MAX.to_le_bytes()), Err(CodecError::TooLong(u32::MAX as usize - 2)));
    assert_eq!(codec::frame_body_bytes(1_u32.to_le_bytes()), Err(CodecError::TooShort(1)));
    let long = Request::Has(vec![BlobName([0; 32]); MESSAGE_BYTES_MAX / 32 + 1]);
    assert!(codec::encode(&long).is_err());
}

#[test]
fn a_lying_length_inside_a_message_allocates_nothing() {
    // `Has` (variant 4) with 2^40 names announced and none there.
    let mut body = codec::VERSION.to_le_bytes().to_vec();
    body.extend([4, 253]);
    body.extend((1_u64 << 40).to_le_bytes());
    assert!(matches!(codec::decode_body::<Request>(&body), Err(CodecError::Malformed(_))));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = codec::decode_body::<Request>(&body);
        let _ = codec::decode_body::<Response>(&body);
        let mut versioned = codec::VERSION.to_le_bytes().to_vec();
        versioned.extend(&body);
        let _ = codec::decode_body::<Request>(&versioned);
        let _ = codec::decode_body::<Response>(&versioned);
    }
}

#[test]
fn maps_that_contradict_themselves_are_refused() {
    assert_eq!(ClusterMap { min_replica: 1, ..map() }.validate(), Ok(()));
    type Breaking = fn(&mut ClusterMap);
    let broken: [(&str, Breaking); 7] = [
        ("1 to 1000 nodes", |m| m.nodes.clear()),
        ("min_replica 2 needs", |_| ()),
        ("1 <= min_replica", |m| m.min_replica = 0),
        ("1 <= min_replica", |m| m.max_replica = 1),
        ("weight", |m| {
            m.min_replica = 1;
            m.nodes[0].weight = 0;
        }),
        ("twice", |m| m.nodes.push(m.nodes[0].clone())),
        ("epoch", |m| {
            m.min_replica = 1;
            m.epoch = 0;
        }),
    ];
    for (says, breaking) in broken {
        let mut map = map();
        breaking(&mut map);
        let error = map.validate().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
