//! Files that other programs made, in the sandbox: no reader needs what it takes away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "some of what it tells is for other tests")]
#[path = "../../containers/tests/samples/mod.rs"]
mod samples;

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::Bytes;
use lazaret_containers::{Budget, ExtractionOutcome, Member, Passwords, TreeBudget, conformance};
use lazaret_sandbox::{Input, Request, Sandbox, SandboxOptions};
use samples::SAMPLES;

#[test]
fn every_sample_comes_apart_as_it_does_without_the_sandbox() {
    let program = env!("CARGO_BIN_EXE_sandboxed-for-tests").into();
    let sandbox = Sandbox::start(SandboxOptions { program, ..SandboxOptions::new(1) }).unwrap();
    for (at, sample) in SAMPLES.iter().enumerate() {
        let file = sample.file();
        let passwords = Passwords::new(sample.password.map(str::to_owned));
        let direct = conformance::take_apart(&file, &passwords);
        // Every other one is handed in on demand.
        let input = Bytes(&file, at % 2 == 0);
        let (members, outcome) = open(&sandbox, &input, &file, &passwords);
        assert_eq!(outcome, direct.outcome, "{}", sample.name);
        assert!(members == direct.members, "{}", sample.name);
    }
}

fn open(
    sandbox: &Sandbox,
    input: &dyn Input,
    file: &[u8],
    passwords: &Passwords,
) -> (Vec<(String, Vec<u8>)>, ExtractionOutcome) {
    let (length, limits) = (file.len() as u64, conformance::limits());
    let stop: Arc<AtomicBool> = Arc::default();
    let tree = Arc::new(TreeBudget::new(limits.clone(), length));
    let budget = Budget::new(tree.clone(), stop, length);
    let request =
        Request { name: "file", length, containers: None, shared: false, limits: &limits, passwords, standing: None };
    let mut opening = sandbox.open(&request, input).unwrap();
    let (file_type, _) = opening.file_type(&|| budget.check()).unwrap().unwrap();
    let mut members = Vec::new();
    let mut outcome = opening.members(&request, &file_type.containers, &budget, &mut |member: Member<'_>| {
        let mut content = Vec::new();
        // What broke it is in the outcome.
        let _ = member.content.read_to_end(&mut content);
        members.push((member.name, content));
        Ok(())
    });
    outcome.suspicious = file_type.suspicious.or(outcome.suspicious);
    (members, outcome)
}
