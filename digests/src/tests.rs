//! A set's digests are the published ones, by every path that the machine has.

use crate::{Path, Selection, Set};

const STEP_BYTES: usize = 64 * 1024;

fn all(content: &[u8]) -> [String; 5] {
    let digests = Set::digest(Selection::ALL, content);
    for path in Path::ALL {
        let mut set = Set::by(path, Selection::ALL);
        set.update(content);
        assert_eq!(set.finish(), digests, "{path}");
    }
    [digests.blake3_hex(), digests.md5_hex(), digests.sha1_hex(), digests.sha256_hex(), digests.sha512_hex()]
}

#[test]
fn the_published_vectors() {
    // BLAKE3 test_vectors.json; RFC 1321 A.5; FIPS 180-4 examples.
    assert_eq!(
        all(b""),
        [
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            "d41d8cd98f00b204e9800998ecf8427e",
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                 47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ]
    );
    assert_eq!(
        all(b"abc"),
        [
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            "900150983cd24fb0d6963f7d28e17f72",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ]
    );
}

#[test]
fn a_million_letters_a() {
    let [_, md5, sha1, sha256, sha512] = all(&vec![b'a'; 1_000_000]);
    assert_eq!(md5, "7707d6ae4e027c70eea2a935c2296f21");
    assert_eq!(sha1, "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
    assert_eq!(sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    assert_eq!(
        sha512,
        "e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb\
             de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b"
    );
}

#[test]
fn pieces_of_any_length_give_what_one_piece_gives() {
    let content: Vec<u8> = (0..3 * STEP_BYTES + 17).map(|i| (i * 31 % 251) as u8).collect();
    let whole = Set::digest(Selection::ALL, &content);
    for length in [1, 63, 64, 65, 1023, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, content.len()] {
        let mut set = Set::new(Selection::ALL);
        content.chunks(length).for_each(|piece| set.update(piece));
        set.update(b"");
        assert_eq!(set.finish(), whole, "pieces of {length}");
    }
}

#[test]
fn what_is_switched_off_is_absent_and_the_rest_unchanged() {
    let whole = Set::digest(Selection::ALL, b"content");
    for bits in 0..16u8 {
        let [md5, sha1, sha256, sha512] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let digests = Set::digest(Selection { md5, sha1, sha256, sha512 }, b"content");
        assert_eq!(digests.blake3, whole.blake3);
        assert_eq!(digests.md5, whole.md5.filter(|_| md5));
        assert_eq!(digests.sha1, whole.sha1.filter(|_| sha1));
        assert_eq!(digests.sha256, whole.sha256.filter(|_| sha256));
        assert_eq!(digests.sha512, whole.sha512.filter(|_| sha512));
        assert_eq!(digests.sha512_hex().len(), if sha512 { 128 } else { 0 });
    }
}
