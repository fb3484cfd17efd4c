//! Base64 as RFC 4648 has it, without line breaks.
#![allow(dead_code, reason = "each test binary uses its own part")]

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn encode(content: &[u8]) -> String {
    let groups = content.chunks(3).map(|group| {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        (0..4).map(move |at| match at <= group.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]),
            false => '=',
        })
    });
    groups.flatten().collect()
}

pub fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().fold(0, |bits, byte| bits << 6 | DIGITS.iter().position(|d| d == byte).unwrap() as u32);
        let group_bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend_from_slice(&group_bytes[1..group.len()]);
    }
    bytes
}
