//! Who signed a Windows program, as its signature says.
//!
//! Read by the `pe` module of yara-x, for files in memory only, and only if the program's own header says that a signature of
//! reasonable length lies in it: nothing else is shown to the parser. Whether a signature is good is not said. In the sandbox
//! both are read there; the worker itself looks at nothing but the file's type.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lazaret_analysis::{FileInfo, Signer};
use yara_x::mods::{PE, invoke};

use crate::sample::Sample;

/// The MIME type of Windows programs, as types are detected here.
const PE_MIME: &str = "application/vnd.microsoft.portable-executable";
/// The longest program that is read: its digest is taken on the way, on the scan thread.
const PROGRAM_BYTES_MAX: u64 = 128 << 20;
/// The longest signature. Those with many certificates and time stamps have some ten thousand bytes.
const SIGNATURE_BYTES_MAX: u32 = 4 << 20;
/// Most signers that are told: a program has one or two.
const SIGNERS_MAX: usize = 16;
/// The longest text of a certificate that is kept.
const TEXT_CHARS_MAX: usize = 1024;

/// Whether a file is one that may have signers.
pub fn may_have_signers(sample: &Sample, file: &FileInfo) -> bool {
    sample.bytes().is_some() && file.file_type == PE_MIME && sample.length() <= PROGRAM_BYTES_MAX
}

/// Who signed a Windows program, read in this process; nobody if it is none, or not signed.
pub fn read(content: &[u8]) -> Vec<Signer> {
    if !says_signed(content).unwrap_or(false) {
        return Vec::new();
    }
    // A parser of other people's over hostile input: if it panics, nothing is known.
    let read = catch_unwind(AssertUnwindSafe(|| invoke::<PE>(content)));
    let Ok(Some(program)) = read else { return Vec::new() };
    program.signatures.iter().take(SIGNERS_MAX).map(signer).collect()
}

/// What an answer from the sandbox says, as far as it may say it.
pub fn of_answer(answer: &[u8]) -> Vec<Signer> {
    let told: Vec<Signer> = serde_json::from_slice(answer).unwrap_or_default();
    let text = |text: String| -> String { text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect() };
    let checked = |signer: Signer| Signer {
        digest_algorithm: text(signer.digest_algorithm),
        digest_encryption_algorithm: text(signer.digest_encryption_algorithm),
        issuer: text(signer.issuer),
        serial_number: text(signer.serial_number),
        vendor_name: text(signer.vendor_name),
        version: text(signer.version),
    };
    told.into_iter().take(SIGNERS_MAX).map(checked).collect()
}

fn signer(signature: &yara_x::mods::pe::Signature) -> Signer {
    let text = |text: &Option<String>| -> String {
        text.as_deref().unwrap_or_default().chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
    };
    let signer_info = signature.signer_info.as_ref();
    let digest = signer_info.map(|info| text(&info.digest_alg)).filter(|name| !name.is_empty());
    Signer {
        digest_algorithm: digest.unwrap_or_else(|| text(&signature.digest_alg)),
        digest_encryption_algorithm: text(&signature.algorithm),
        issuer: text(&signature.issuer),
        serial_number: text(&signature.serial),
        vendor_name: text(&signature.subject),
        // yara-x counts from 1, the API from 0.
        version: signature.version.map(|version| version.saturating_sub(1).to_string()).unwrap_or_default(),
    }
}

/// Whether the program's header says that it has a signature, one that lies within the file.
fn says_signed(content: &[u8]) -> Option<bool> {
    let half = |at: usize| content.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes);
    let word = |at: usize| content.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes);
    let header = word(0x3c)? as usize;
    if content.get(header..header.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let optional = header.checked_add(24)?;
    // The directories stand behind fields that are wider in 64-bit programs. The fifth is that of signatures.
    let directories = match half(optional)? {
        0x10b => optional.checked_add(96)?,
        0x20b => optional.checked_add(112)?,
        _ => return None,
    };
    let (offset, length) = (word(directories.checked_add(32)?)?, word(directories.checked_add(36)?)?);
    let end = u64::from(offset).checked_add(u64::from(length))?;
    Some(length > 0 && length <= SIGNATURE_BYTES_MAX && end <= content.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest program that tools take, signed with a self-signed certificate by
    /// `osslsigncode sign -certs c.pem -key k.pem -h sha256 -in plain.exe -out signed.exe`.
    const SIGNED: &[u8] = include_bytes!("../tests/data/signed.exe");

    fn of(content: &[u8]) -> Vec<Signer> {
        let signers = read(content);
        assert_eq!(of_answer(&serde_json::to_vec(&signers).unwrap()), signers);
        signers
    }

    #[test]
    fn a_signer_is_told_as_the_certificate_has_it() {
        let signers = of(SIGNED);
        assert_eq!(signers.len(), 1);
        let signer = &signers[0];
        println!("{signer:?}");
        assert!(signer.vendor_name.contains("Lazaret Test Vendor") && signer.issuer.contains("Lazaret Test Signer"));
        assert_eq!(signer.serial_number.replace(':', ""), "1122334455");
        assert_eq!((signer.digest_algorithm.as_str(), signer.version.as_str()), ("sha256", "2"));
        assert!(signer.digest_encryption_algorithm.to_lowercase().contains("rsa"));
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_harms_nobody() {
        for length in 0..SIGNED.len() {
            of(&SIGNED[..length]);
        }
        for at in 0..SIGNED.len() {
            let mut changed = SIGNED.to_vec();
            changed[at] ^= 0xff;
            of(&changed);
        }
        assert!(of(b"MZ").is_empty());
        let unsigned: Vec<u8> = SIGNED[..1024].to_vec();
        assert!(of(&unsigned).is_empty());
        let mut file = FileInfo { file_type: "text/plain".into(), ..FileInfo::default() };
        let sample = Sample::memory("a", SIGNED.to_vec());
        assert!(!may_have_signers(&sample, &file));
        file.file_type = PE_MIME.into();
        assert!(may_have_signers(&sample, &file));
        let long = Signer { issuer: "x\n".repeat(9_999), ..Signer::default() };
        let told = of_answer(&serde_json::to_vec(&vec![long; 99]).unwrap());
        assert_eq!((told.len(), told[0].issuer.len()), (SIGNERS_MAX, TEXT_CHARS_MAX));
        assert!(of_answer(b"senseless").is_empty());
    }
}
