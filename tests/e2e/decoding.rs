//! What encoded bodies cost the gateway.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::harness::{Gateway, Unattended, memory_mib};

/// The budget for uploads in flight of the gateway here.
const BUDGET_MIB: u64 = 128;
/// Bodies at once, and what each decodes to.
const BODIES: usize = 40;
const DECODED_MIB: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_decode_to_a_thousand_times_as_much_stay_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let budget = format!("inflight_bytes_max: {}", BUDGET_MIB << 20);
    // What `cluster init` writes, and the tighter one.
    let station = Unattended::start(dir.path(), &[("inflight_bytes_max: 268435456", &budget)]);
    let gateway = Gateway::new(&station.gateway.ready["gateway"], &dir.path().join("client.key"));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..DECODED_MIB {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let body = encoder.finish().unwrap();
    assert!(body.len() * 1000 < DECODED_MIB << 20, "{} bytes", body.len());
    let idle_mib = memory_mib(station.gateway.id(), "VmHWM:");

    let mut submissions = JoinSet::new();
    for number in 0..BODIES {
        let (gateway, body) = (gateway.clone(), body.clone());
        submissions.spawn(async move {
            let headers = [("content-encoding", "gzip")];
            gateway.post_with(&format!("zeros-{number}"), body, &headers).await.unwrap().0
        });
    }
    let statuses = submissions.join_all().await;
    let taken = statuses.iter().filter(|status| **status == StatusCode::OK).count();
    let busy = statuses.iter().filter(|status| **status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert!(taken > 0 && taken + busy == BODIES, "{statuses:?}");
    let used_mib = memory_mib(station.gateway.id(), "VmHWM:").saturating_sub(idle_mib);
    // The allocator keeps some of what is freed.
    assert!(used_mib <= BUDGET_MIB * 3 / 2, "{used_mib} MiB for a budget of {BUDGET_MIB}, {taken} bodies taken");
}
