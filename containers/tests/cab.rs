//! Cabinets in methods that no program at hand writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cabinets;

use cabinets::{BLOCK_BYTES, Folder, LZX, QUANTUM, STORED, cabinet, lzx_zeros, quantum};
use lazaret_containers::Passwords;
use lazaret_containers::conformance::{self, Case, Random, eicar, take_apart};

const ROUNDS: u32 = 500;

fn in_quantum(content: &[u8]) -> Vec<u8> {
    cabinet(&[Folder { method: QUANTUM, blocks: quantum(content), name: "e.com" }])
}

/// For looking at with other programs: `LAZARET_KEEP=folder` writes what is made there.
fn keep(name: &str, file: &[u8]) {
    if let Ok(folder) = std::env::var("LAZARET_KEEP") {
        std::fs::write(std::path::Path::new(&folder).join(name), file).unwrap();
    }
}

#[test]
fn quantum_comes_apart() {
    let numbers: String = (0..40_000).map(|number| format!("{}\n", number * number)).collect();
    let mut random = Random(7);
    let noise: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
    let zeros = vec![0; 1 << 20];
    for (name, content) in [
        ("short", eicar()),
        ("text", numbers.into_bytes()),
        ("noise", noise.clone()),
        ("zeros", zeros),
        // What repeats over more than a block.
        ("far", [&noise[..50_000], &eicar(), &noise[..50_000]].concat()),
    ] {
        let file = in_quantum(&content);
        keep(&format!("quantum-{name}.cab"), &file);
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{name}: {}", taken.outcome.detail());
        assert!(taken.members == [("e.com".to_owned(), content)], "{name}");
    }
    conformance::check(&Case::new("cab", &in_quantum(&eicar()), &eicar()), ROUNDS);
    let content = [eicar(), noise[..3000].to_vec(), eicar(), vec![7; 3000]].concat();
    conformance::survives_mutations(&Case::new("cab", &in_quantum(&content), &eicar()), ROUNDS);
}

#[test]
fn windows_that_the_format_has_not_are_told() {
    for bits in [0, 9, 22, 31] {
        let method = 2 | bits << 8;
        let file = cabinet(&[Folder { method, blocks: quantum(&eicar()), name: "e.com" }]);
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some(), "{bits}");
    }
}

#[test]
fn zeros_in_lzx_come_apart() {
    let zeros = Folder { method: LZX, blocks: lzx_zeros(600), name: "zeros" };
    let stored = Folder { method: STORED, blocks: vec![(eicar(), eicar().len() as u16)], name: "e.com" };
    let file = cabinet(&[zeros, stored]);
    keep("lzx.cab", &file);
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
    assert!(taken.members == [("zeros".to_owned(), vec![0; 600 * BLOCK_BYTES]), ("e.com".to_owned(), eicar())]);
}
