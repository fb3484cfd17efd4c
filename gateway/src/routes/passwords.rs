//! The passwords that come with a file: the header `archivepwd`, and `archivepwd1`, `archivepwd2` and so on, each
//! percent-encoded UTF-8. They are tried in the order of their numbers.
//!
//! Invariant: no error shows one.

use axum::http::HeaderMap;
use lazaret_analysis::PasswordList;

use super::headers;
use crate::error::ApiError;

const HEADER: &str = "archivepwd";

/// The passwords of a request.
pub(super) fn of(sent: &HeaderMap) -> Result<PasswordList, ApiError> {
    let bad = |reason: String| ApiError::BadHeader { name: HEADER, reason };
    let mut numbered = Vec::new();
    for (name, value) in sent {
        let Some(number) = name.as_str().strip_prefix(HEADER) else { continue };
        let number = match number {
            "" => 0,
            digits => match digits.parse::<u32>() {
                Ok(number) if number >= 1 && digits.bytes().all(|digit| digit.is_ascii_digit()) => number,
                _ => return Err(bad("it is followed by nothing or by a number from 1 on".to_owned())),
            },
        };
        if !value.is_empty() {
            numbered.push((number, value));
        }
    }
    numbered.sort_by_key(|(number, _)| *number);
    let mut passwords = PasswordList::default();
    for (_, value) in numbered {
        // As it is comes second, for clients that send it raw.
        headers::decoded_text(value)
            .into_iter()
            .chain([headers::raw_text(value)])
            .for_each(|text| passwords.push(text));
    }
    passwords.check().map_err(bad)?;
    Ok(passwords)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn passwords(headers: &[(&'static str, &[u8])]) -> Result<Vec<String>, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        match of(&map) {
            Ok(list) => Ok(list.iter().map(str::to_owned).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn passwords_are_read_in_order_encoded_or_raw() {
        let found =
            passwords(&[("archivepwd10", b"bear"), ("archivepwd", b"fox"), ("archivepwd2", b"cow"), ("rule", b"x")]);
        assert_eq!(found.unwrap(), ["fox", "cow", "bear"]);
        assert_eq!(passwords(&[("archivepwd", b"%20a%C3%A9")]).unwrap(), [" aé", "%20a%C3%A9"], "raw comes second");
        assert_eq!(passwords(&[("archivepwd", "é".as_bytes())]).unwrap(), ["é"]);
        assert_eq!(passwords(&[("archivepwd", b"\xe9")]).unwrap(), ["é"], "Latin-1");
        assert_eq!(passwords(&[("archivepwd", b"100%")]).unwrap(), ["100%"]);
        assert_eq!(passwords(&[("archivepwd", b"a"), ("archivepwd", b"b")]).unwrap(), ["a", "b"], "sent twice");
        assert!(passwords(&[("archivepwd", b"")]).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_password_header_is_refused_without_showing_it() {
        for name in ["archivepwd0", "archivepwdx", "archivepwd+1", "archivepwd99999999999"] {
            let error = passwords(&[(name, b"secret")]).unwrap_err();
            assert!(error.contains("archivepwd") && !error.contains("secret"), "{error}");
        }
        assert!(passwords(&[("archivepwd", &[b'x'; 1025])]).is_err());
    }
}
