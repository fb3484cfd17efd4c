//! ADC, Apple's oldest compression of disk images: literals, and repetitions of what came before, of two or three bytes each.

use std::io;

use crate::fields::invalid;

/// Decodes what becomes `length` bytes.
pub(super) fn decode(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let cut = || invalid("compressed data that are cut off");
    let mut decoded = Vec::new();
    let mut rest = packed;
    while decoded.len() < length {
        let (code, behind) = rest.split_first().ok_or_else(cut)?;
        let code = usize::from(*code);
        let (count, distance) = match code {
            0x80.. => {
                let (literals, behind) = behind.split_at_checked((code & 0x7f) + 1).ok_or_else(cut)?;
                decoded.extend_from_slice(literals);
                rest = behind;
                continue;
            }
            0x40.. => {
                let (distance, behind) = behind.split_first_chunk::<2>().ok_or_else(cut)?;
                rest = behind;
                ((code & 0x3f) + 4, usize::from(u16::from_be_bytes(*distance)))
            }
            _ => {
                let (low, behind) = behind.split_first().ok_or_else(cut)?;
                rest = behind;
                ((code >> 2 & 15) + 3, (code & 3) << 8 | usize::from(*low))
            }
        };
        let from = decoded.len().checked_sub(distance + 1).ok_or_else(|| invalid("malformed compressed data"))?;
        for at in from..from + count {
            decoded.extend(decoded.get(at).copied());
        }
    }
    if decoded.len() == length { Ok(decoded) } else { Err(invalid("malformed compressed data")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_both_kinds_of_repetition() {
        let packed = [0x82, b'a', b'b', b'c', 0x00, 2, 0x40, 0, 5];
        assert_eq!(decode(&packed, 10).unwrap(), b"abcabcabca");
        assert!(decode(&packed, 9).is_err() && decode(&packed[..8], 10).is_err() && decode(&[0, 0], 3).is_err());
    }
}
