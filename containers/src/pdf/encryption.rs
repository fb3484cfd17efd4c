//! PDF under a password: the standard security handler in its revisions 2 to 6. Format: ISO 32000-1, 7.6 and ISO 32000-2, 7.6.4.
//!
//! Most encrypted documents open with the empty password: they only ask readers not to print. Handlers by certificates stay closed.

use std::io::{self, Read};

use md5::{Digest, Md5};
use sha2::{Sha256, Sha384, Sha512};

use super::object::Value;
use crate::cipher::{Aes, BLOCK_BYTES, Rc4};
use crate::container::read_full;
use crate::fields::cut_off;

/// What passwords are filled up with: ISO 32000-1, 7.6.3.3.
const PADDING: [u8; 32] = [
    0x28, 0xbf, 0x4e, 0x5e, 0x4e, 0x75, 0x8a, 0x41, 0x64, 0x00, 0x4e, 0x56, 0xff, 0xfa, 0x01, 0x08, 0x2e, 0x2e, 0x00,
    0xb6, 0xd0, 0x68, 0x3e, 0x80, 0x2f, 0x0c, 0xa9, 0xfe, 0x64, 0x53, 0x69, 0x7a,
];
/// What revision 6 hashes at most: it goes on until a byte is small enough, which chance makes happen soon.
const ROUNDS_MAX: u32 = 1024;
/// Most crypt filters of a document that count. Real ones have one or two.
pub(super) const CRYPT_FILTERS_MAX: usize = 64;
/// The longest password of revisions 5 and 6; what is beyond doesn't count.
const LONG_PASSWORD_BYTES_MAX: usize = 127;

/// How streams or strings are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Not,
    Rc4,
    Aes,
    /// AES with the key of the whole file, of 256 bits.
    AesLong,
}

/// An opened encryption.
pub(super) struct Encryption {
    key: Vec<u8>,
    /// How streams are encrypted that say nothing else.
    pub(super) streams: Method,
    /// How the streams of attachments are, for programs that ask; most take them for streams like others.
    pub(super) embedded: Method,
    strings: Method,
    /// The methods that a stream may name for itself.
    named: Vec<(Vec<u8>, Method)>,
    /// Something is encrypted in a way that is not known here, and comes out as it lies.
    pub(super) has_unknown: bool,
    /// Whether the document's description of itself is encrypted too.
    pub(super) metadata: bool,
    /// Whether it opened with a password that was given, and not with the empty one.
    pub(super) by_password: bool,
}

impl Encryption {
    /// Opens the encryption that a dictionary describes with the first password that fits, the empty one before all. None if no password fits, or it
    /// is not known here.
    pub(super) fn open<'p>(dictionary: &Value, id: &[u8], passwords: impl Iterator<Item = &'p str>) -> Option<Self> {
        if !dictionary.is("Filter", "Standard") {
            return None;
        }
        let number = |name: &str| dictionary.get(name).and_then(Value::number);
        let (streams, strings, embedded) = match number("V")? {
            1..=3 => (Some(Method::Rc4), Some(Method::Rc4), Some(Method::Rc4)),
            4 | 5 => {
                let streams = method(dictionary, "StmF");
                let embedded = if dictionary.get("EFF").is_some() { method(dictionary, "EFF") } else { streams };
                (streams, method(dictionary, "StrF"), embedded)
            }
            _ => return None,
        };
        let metadata = dictionary.get("EncryptMetadata") != Some(&Value::Truth(false));
        let handler = Handler {
            revision: number("R")?,
            key_bytes: usize::try_from(number("Length").unwrap_or(40)).ok()?.clamp(40, 128) / 8,
            owner: dictionary.get("O")?.text()?,
            user: dictionary.get("U")?.text()?,
            owner_key: dictionary.get("OE").and_then(Value::text).unwrap_or_default(),
            user_key: dictionary.get("UE").and_then(Value::text).unwrap_or_default(),
            permissions: number("P")? as u32,
            id,
            metadata,
        };
        let (key, by_password) = std::iter::once("").chain(passwords).find_map(|password| {
            // Before revision 5 passwords are in a code page that agrees with ASCII.
            handler.key(password.as_bytes()).map(|key| (key, !password.is_empty()))
        })?;
        let has_unknown = [streams, strings, embedded].contains(&None);
        let [streams, strings, embedded] = [streams, strings, embedded].map(|method| method.unwrap_or(Method::Not));
        Some(Self { key, streams, embedded, strings, named: named(dictionary), has_unknown, metadata, by_password })
    }

    /// The method that a stream names for itself; none if it is not known.
    pub(super) fn named(&self, name: &[u8]) -> Option<Method> {
        if name == b"Identity" {
            return Some(Method::Not);
        }
        self.named.iter().find(|(other, _)| other == name).map(|(_, method)| *method)
    }

    /// Decrypts a string of an object.
    pub(super) fn string(&self, text: &[u8], object: (u32, u32)) -> Vec<u8> {
        let mut out = Vec::new();
        // What can't be decrypted to its end comes out as far as it goes.
        let _ = self.reader(self.strings, Box::new(text), object).read_to_end(&mut out);
        out
    }

    /// Decrypts what `input` yields, of an object.
    pub(super) fn reader<'i>(
        &self,
        method: Method,
        input: Box<dyn Read + 'i>,
        object: (u32, u32),
    ) -> Box<dyn Read + 'i> {
        match method {
            Method::Not => input,
            Method::Rc4 => Box::new(Rc4Reader { input, cipher: Rc4::new(&self.object_key(object, b"")) }),
            Method::Aes => AesReader::boxed(input, &self.object_key(object, b"sAlT")),
            Method::AesLong => AesReader::boxed(input, &self.key),
        }
    }

    /// The key of one object: ISO 32000-1, 7.6.2.
    fn object_key(&self, (number, generation): (u32, u32), salt: &[u8]) -> Vec<u8> {
        let number = number.to_le_bytes();
        let generation = generation.to_le_bytes();
        let [n0, n1, n2, _] = number;
        let [g0, g1, _, _] = generation;
        let mut hash = md5(&[&self.key, &[n0, n1, n2, g0, g1], salt]);
        hash.truncate((self.key.len() + 5).min(16));
        hash
    }
}

/// How what a crypt filter applies to is encrypted; none if that is not known.
fn method(dictionary: &Value, applies_to: &str) -> Option<Method> {
    match dictionary.get(applies_to) {
        None | Some(Value::Other) => Some(Method::Not),
        Some(name) if name.name() == Some(b"Identity") => Some(Method::Not),
        Some(name) => {
            named(dictionary).into_iter().find(|(other, _)| Some(&**other) == name.name()).map(|(_, method)| method)
        }
    }
}

/// The crypt filters whose methods are known, by their names.
fn named(dictionary: &Value) -> Vec<(Vec<u8>, Method)> {
    let Some(Value::Dictionary(filters)) = dictionary.get("CF") else { return Vec::new() };
    let method = |filter: &Value| match filter.get("CFM").map(Value::name) {
        Some(Some(b"V2")) => Some(Method::Rc4),
        Some(Some(b"AESV2")) => Some(Method::Aes),
        Some(Some(b"AESV3")) => Some(Method::AesLong),
        None | Some(Some(b"None")) => Some(Method::Not),
        _ => None,
    };
    let named = filters.iter().take(CRYPT_FILTERS_MAX);
    named.filter_map(|(name, filter)| Some((name.clone(), method(filter)?))).collect()
}

fn md5(parts: &[&[u8]]) -> Vec<u8> {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize().to_vec()
}

struct Handler<'h> {
    revision: i64,
    key_bytes: usize,
    owner: &'h [u8],
    user: &'h [u8],
    owner_key: &'h [u8],
    user_key: &'h [u8],
    permissions: u32,
    id: &'h [u8],
    metadata: bool,
}

impl Handler<'_> {
    /// The key that a password opens, as the user's or the owner's.
    fn key(&self, password: &[u8]) -> Option<Vec<u8>> {
        match self.revision {
            2..=4 => self.key_of_user(&padded(password)).or_else(|| {
                let user = self.user_password(password)?;
                self.key_of_user(&user)
            }),
            5 | 6 => self.long_key(password.get(..LONG_PASSWORD_BYTES_MAX).unwrap_or(password)),
            _ => None,
        }
    }

    fn key_bytes(&self) -> usize {
        if self.revision == 2 { 5 } else { self.key_bytes }
    }

    /// Algorithms 2, 4, 5 and 6 of ISO 32000-1.
    fn key_of_user(&self, padded: &[u8; 32]) -> Option<Vec<u8>> {
        let no_metadata: &[u8] = if self.revision >= 4 && !self.metadata { &[0xff; 4] } else { b"" };
        let owner = self.owner.get(..32)?;
        let mut key = md5(&[padded, owner, &self.permissions.to_le_bytes(), self.id, no_metadata]);
        key.truncate(self.key_bytes());
        if self.revision == 2 {
            let mut expected = PADDING;
            Rc4::new(&key).apply(&mut expected);
            return (self.user == expected).then_some(key);
        }
        for _ in 0..50 {
            key = md5(&[&key]);
            key.truncate(self.key_bytes());
        }
        let mut expected = md5(&[&PADDING, self.id]);
        for round in 0..20u8 {
            let key: Vec<u8> = key.iter().map(|byte| byte ^ round).collect();
            Rc4::new(&key).apply(&mut expected);
        }
        self.user.starts_with(&expected).then_some(key)
    }

    /// Algorithm 7 of ISO 32000-1: the user's password, which the owner's opens.
    fn user_password(&self, password: &[u8]) -> Option<[u8; 32]> {
        let mut key = md5(&[&padded(password)]);
        if self.revision >= 3 {
            for _ in 0..50 {
                key = md5(&[&key]);
            }
        }
        key.truncate(self.key_bytes());
        let mut user: [u8; 32] = *self.owner.first_chunk()?;
        let rounds = if self.revision == 2 { 1 } else { 20u8 };
        for round in (0..rounds).rev() {
            let key: Vec<u8> = key.iter().map(|byte| byte ^ round).collect();
            Rc4::new(&key).apply(&mut user);
        }
        Some(user)
    }

    /// Algorithm 2.A of ISO 32000-2.
    fn long_key(&self, password: &[u8]) -> Option<Vec<u8>> {
        let user = self.user.get(..48)?;
        let attempts = [(user, &[][..], self.user_key), (self.owner.get(..48)?, user, self.owner_key)];
        attempts.into_iter().find_map(|(verifier, more, encrypted)| {
            let (hash, salts) = verifier.split_at_checked(32)?;
            let (validation, key_salt) = salts.split_at_checked(8)?;
            if self.long_hash(password, validation, more)? != hash {
                return None;
            }
            let mut key = encrypted.get(..32)?.to_vec();
            let with = self.long_hash(password, key_salt, more)?;
            Aes::new(&with)?.decrypt_cbc(&mut [0; BLOCK_BYTES], &mut key);
            Some(key)
        })
    }

    /// Algorithm 2.B of ISO 32000-2; in revision 5 it is its first line only.
    fn long_hash(&self, password: &[u8], salt: &[u8], more: &[u8]) -> Option<Vec<u8>> {
        let mut digest = Sha256::new();
        for part in [password, salt, more] {
            digest.update(part);
        }
        let mut key = digest.finalize().to_vec();
        if self.revision == 5 {
            return Some(key);
        }
        for round in 0..ROUNDS_MAX {
            let mut data = [password, &key, more].concat().repeat(64);
            let mut vector = *key.get(16..)?.first_chunk()?;
            Aes::new(key.get(..16)?)?.encrypt_cbc(&mut vector, &mut data);
            // 256 is 1 modulo 3, so the number that the first 16 bytes are is their sum, modulo 3.
            let sum: u32 = data.get(..16)?.iter().map(|byte| u32::from(*byte)).sum();
            key = match sum % 3 {
                0 => Sha256::digest(&data).to_vec(),
                1 => Sha384::digest(&data).to_vec(),
                _ => Sha512::digest(&data).to_vec(),
            };
            if round >= 63 && u32::from(*data.last()?) <= round - 31 {
                key.truncate(32);
                return Some(key);
            }
        }
        None
    }
}

/// A password of revisions 2 to 4, filled up.
fn padded(password: &[u8]) -> [u8; 32] {
    let mut all = password.iter().chain(&PADDING).copied();
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

struct Rc4Reader<R> {
    input: R,
    cipher: Rc4,
}

impl<R: Read> Read for Rc4Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.cipher.apply(into.get_mut(..read).unwrap_or_default());
        Ok(read)
    }
}

/// AES in CBC mode; the first block is the vector, the last one says how much of it counts.
struct AesReader<R> {
    input: R,
    aes: Aes,
    vector: Option<[u8; BLOCK_BYTES]>,
    /// Encrypted blocks that were read ahead: the last one can only be told by the end behind it.
    ahead: Vec<u8>,
    out: Vec<u8>,
    given: usize,
    ended: bool,
}

const AES_BUFFER_BYTES: usize = 16 * 1024;

impl<'i> AesReader<Box<dyn Read + 'i>> {
    fn boxed(input: Box<dyn Read + 'i>, key: &[u8]) -> Box<dyn Read + 'i> {
        match Aes::new(key) {
            Some(aes) => {
                let (ahead, out) = (Vec::new(), Vec::new());
                Box::new(Self { input, aes, vector: None, ahead, out, given: 0, ended: false })
            }
            None => Box::new(Failing),
        }
    }
}

impl<R: Read> AesReader<R> {
    fn fill(&mut self) -> io::Result<()> {
        let mut vector = match self.vector {
            Some(vector) => vector,
            None => {
                let mut vector = [0; BLOCK_BYTES];
                match read_full(&mut self.input, &mut vector)? {
                    // Nothing, encrypted as nothing.
                    0 => {
                        self.ended = true;
                        return Ok(());
                    }
                    BLOCK_BYTES => vector,
                    _ => return Err(cut_off("encrypted data is cut off")),
                }
            }
        };
        let mut read = vec![0; AES_BUFFER_BYTES];
        let length = read_full(&mut self.input, &mut read)?;
        self.ended = length < read.len();
        read.truncate(length);
        let mut data = std::mem::replace(&mut self.ahead, read);
        if self.ended {
            data.append(&mut self.ahead);
        }
        self.aes.decrypt_cbc(&mut vector, &mut data);
        self.vector = Some(vector);
        if self.ended {
            // A writer that forgot the padding, or a line break that was taken for data: all of it counts.
            data.truncate(data.len() / BLOCK_BYTES * BLOCK_BYTES);
            if let Some(padding @ 1..=16) = data.last().copied() {
                data.truncate(data.len() - usize::from(padding));
            }
        }
        self.out = data;
        self.given = 0;
        Ok(())
    }
}

impl<R: Read> Read for AesReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given >= self.out.len() {
            if self.ended || into.is_empty() {
                return Ok(0);
            }
            self.fill()?;
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}

/// Data whose key has no length that AES has.
struct Failing;

impl Read for Failing {
    fn read(&mut self, _into: &mut [u8]) -> io::Result<usize> {
        Err(crate::fields::invalid("a key of no length that AES has"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Taken, eicar, take_apart};
    use crate::passwords::Passwords;

    const OWNER: [u8; 32] = [b'o'; 32];
    const ID: &[u8] = b"0123456789abcdef";
    const STANDARD: &str = "/Filter/Standard/V 4/R 4/Length 128/P -4/CF<</StdCF<</CFM/V2>>/Odd<</CFM/AESV9>>>>";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A document under the empty password: its one stream, of number 2, what it says of itself, and how the document is encrypted.
    fn document(entries: &str, how: &str, is_encrypted: bool) -> Vec<u8> {
        let mut key = md5(&[&PADDING, &OWNER, &(-4_i32).to_le_bytes(), ID]);
        for _ in 0..50 {
            key = md5(&[&key]);
        }
        let mut user = md5(&[&PADDING, ID]);
        for round in 0..20u8 {
            Rc4::new(&key.iter().map(|byte| byte ^ round).collect::<Vec<u8>>()).apply(&mut user);
        }
        user.extend([0; 16]);
        let mut data = eicar();
        if is_encrypted {
            let object_key = md5(&[&key, &[2, 0, 0, 0, 0]]);
            Rc4::new(&object_key).apply(&mut data);
        }
        let length = data.len();
        let file =
            format!("%PDF-1.7\n1 0 obj <</Type/Catalog>> endobj\n2 0 obj <</Length {length} {entries}>>\nstream\n");
        let mut file = file.into_bytes();
        file.extend(data);
        let (owner, user, id) = (hex(&OWNER), hex(&user), hex(ID));
        let how = format!(
            "3 0 obj <<{how}/O<{owner}>/U<{user}>>> endobj\n4 0 obj /StdCF endobj\n5 0 obj <</CFM 6 0 R>> endobj\n"
        );
        let end = format!(
            "6 0 obj /V2 endobj\ntrailer <</Root 1 0 R/Encrypt 3 0 R/ID[<{id}><{id}>]>>\nstartxref\n0\n%%EOF\n"
        );
        file.extend(format!("\nendstream endobj\n{how}{end}").bytes());
        file
    }

    fn taken(entries: &str, how: &str, is_encrypted: bool) -> Taken {
        take_apart(&document(entries, &format!("{STANDARD}{how}"), is_encrypted), &Passwords::NONE)
    }

    fn is_found(taken: &Taken) -> bool {
        taken.members.iter().any(|(_, content)| *content == eicar())
    }

    #[test]
    fn streams_are_decrypted_as_programs_do() {
        let all = "/StmF/StdCF/StrF/Identity";
        let none = "/StmF/Identity/StrF/Identity";
        let named = "/Filter[/Crypt]/DecodeParms[<</Name/StdCF>>]";
        for (entries, how, is_encrypted) in [
            ("", all, true),
            (named, none, true),
            (named, "", true),
            ("/Filter[/Crypt]/DecodeParms[<</Name 4 0 R>>]", none, true),
            ("/Filter/Crypt", all, false),
            ("/Type/EmbeddedFile", "/StmF/Identity/EFF/StdCF", true),
            ("", "/StmF/Identity/EFF/StdCF", true),
            // What some programs overlook.
            ("/Type/EmbeddedFile", "/StmF/StdCF/EFF/Identity", true),
            ("/Type/EmbeddedFile", "/StmF/Identity/EFF/StdCF", false),
            ("/Filter/Crypt", all, true),
            ("/Type/XRef", all, true),
            ("/Type/Metadata", "/StmF/StdCF/EncryptMetadata true", true),
            // What is said elsewhere.
            ("", "/StmF 4 0 R", true),
        ] {
            let taken = taken(entries, how, is_encrypted);
            assert!(is_found(&taken), "{entries} {how}: {taken:?}");
            assert!(taken.outcome.is_complete(), "{entries} {how}: {}", taken.outcome.detail());
        }
        let elsewhere = STANDARD.replace("<</CFM/V2>>", " 5 0 R");
        let file = document("", &format!("{elsewhere}{all}"), true);
        assert!(is_found(&take_apart(&file, &Passwords::NONE)));
    }

    #[test]
    fn what_can_be_decrypted_in_no_way_or_in_two_is_told() {
        let broken = |entries, how| taken(entries, how, true).outcome.broken.is_some();
        assert!(broken("", "/StmF/Odd") && broken("", "/StmF/None") && broken("", "/StmF/StdCF/EFF/Odd"));
        assert!(broken("/Filter[/Crypt]/DecodeParms[<</Name/Odd>>]", "/StmF/StdCF"));
        assert!(broken("", "/X nan /StmF/StdCF") && broken("", "/X > /StmF/StdCF"));
        let deep = format!("/X {}{} /StmF/StdCF", "[".repeat(60), "]".repeat(60));
        assert!(broken("", &deep) && is_found(&taken("", &deep, true)));
        assert!(taken("", "/StmF/Identity/StmF/StdCF", true).outcome.suspicious.is_some());
    }
}
