//! What clients say in headers: texts that come percent-encoded or raw, numbers, yes and no.

use axum::http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode;

use crate::error::ApiError;

/// The text of the first of these headers that is there and not empty.
pub(super) fn first_text(headers: &HeaderMap, names: &[&str]) -> Option<String> {
    names.iter().filter_map(|name| headers.get(*name)).map(header_text).find(|text| !text.is_empty())
}

/// A URL, as it is, or percent-encoded as a whole. Within a URL an escape is not what it stands for.
pub(super) fn first_url(headers: &HeaderMap, name: &str) -> Option<String> {
    as_it_is(headers, name, |raw| raw.contains("://"))
}

/// JSON, as it is or percent-encoded, or any other text. Within JSON an escape is part of a text.
pub(super) fn json_or_text(headers: &HeaderMap, name: &str) -> Option<String> {
    as_it_is(headers, name, |raw| {
        raw.starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(raw).is_ok()
    })
}

/// A header's text, undecoded if it is meant so.
fn as_it_is(headers: &HeaderMap, name: &str, is_meant: impl Fn(&str) -> bool) -> Option<String> {
    let raw = headers.get(name).map(raw_text).map(|raw| raw.trim().to_owned());
    raw.filter(|raw| is_meant(raw)).or_else(|| first_text(headers, &[name]))
}

/// A header's text: percent-encoded UTF-8 as some clients send it, or raw UTF-8, or raw Latin-1, which every byte
/// sequence is.
pub(super) fn header_text(value: &HeaderValue) -> String {
    decoded_text(value).unwrap_or_else(|| raw_text(value)).trim().to_owned()
}

/// What a header's value says percent-decoded, if that is UTF-8.
pub(super) fn decoded_text(value: &HeaderValue) -> Option<String> {
    percent_decode(value.as_bytes()).decode_utf8().ok().map(String::from)
}

/// What it says as it is: UTF-8 or Latin-1.
pub(super) fn raw_text(value: &HeaderValue) -> String {
    let raw = value.as_bytes();
    std::str::from_utf8(raw).map_or_else(|_| raw.iter().map(|byte| char::from(*byte)).collect(), str::to_owned)
}

/// The text without control characters, which could write on the terminal of whoever lists analyses.
pub(super) fn printable(text: String) -> String {
    if text.contains(char::is_control) {
        text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
    } else {
        text
    }
}

/// How the client's program calls itself.
pub(super) fn user_agent(headers: &HeaderMap) -> String {
    printable(first_text(headers, &["user_agent", "user-agent"]).unwrap_or_default())
}

/// The rule that the client names.
pub(super) fn rule(headers: &HeaderMap) -> Option<String> {
    first_text(headers, &["rule", "workflow"])
}

/// A number; nothing if the header is missing or empty.
pub(super) fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, ApiError> {
    let Some(text) = first_text(headers, &[name]) else { return Ok(None) };
    let bad = |_| ApiError::BadHeader { name, reason: "it must be a whole number".to_owned() };
    text.parse().map(Some).map_err(bad)
}

/// Yes or no; no if the header is missing or empty.
pub(super) fn flag(headers: &HeaderMap, name: &'static str) -> Result<bool, ApiError> {
    let text = first_text(headers, &[name]).unwrap_or_default().to_ascii_lowercase();
    match text.as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(ApiError::BadHeader { name, reason: "it must be true or false".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: &[u8]) -> String {
        header_text(&HeaderValue::from_bytes(raw).unwrap())
    }

    #[test]
    fn names_come_percent_encoded_or_raw() {
        assert_eq!(text(b"r%C3%A9sum%C3%A9.pdf"), "résumé.pdf");
        assert_eq!(text("résumé.pdf".as_bytes()), "résumé.pdf");
        assert_eq!(text(b"r\xe9sum\xe9.pdf"), "résumé.pdf", "Latin-1");
        assert_eq!(text(b"100% sure.txt"), "100% sure.txt", "not an escape");
        assert_eq!(text(b"caf%E9.txt"), "caf%E9.txt", "decodes to no UTF-8: taken as it is");
        assert_eq!(text(b"%E6%96%87%E4%BB%B6.zip"), "文件.zip");
        assert_eq!(printable(text(b"a%1B[2Jb%00.txt")), "a\u{fffd}[2Jb\u{fffd}.txt");
    }

    #[test]
    fn urls_and_json_keep_their_escapes() {
        let headers =
            |value: &'static str| HeaderMap::from_iter([("x".parse().unwrap(), HeaderValue::from_static(value))]);
        let url = |value| first_url(&headers(value), "x").unwrap();
        assert_eq!(url("http://host/a%2Fb?sig=a%2Bb"), "http://host/a%2Fb?sig=a%2Bb");
        assert_eq!(url("http%3A%2F%2Fhost%2Fa%252Fb"), "http://host/a%2Fb");
        let json = |value| json_or_text(&headers(value), "x").unwrap();
        assert_eq!(json(r#"{"p":"a%22b"}"#), r#"{"p":"a%22b"}"#);
        assert_eq!(json("%7B%22p%22%3A1%7D"), r#"{"p":1}"#);
        assert_eq!(json("just%20words"), "just words");
        assert_eq!(json_or_text(&headers(""), "x"), None);
    }

    #[test]
    fn numbers_and_flags_are_read_or_refused() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([("timerange".parse().unwrap(), HeaderValue::from_static(value))])
        };
        assert_eq!(number(&headers("24"), "timerange").unwrap(), Some(24));
        assert_eq!(number(&headers(""), "timerange").unwrap(), None);
        assert_eq!(number(&HeaderMap::new(), "timerange").unwrap(), None);
        assert!(number(&headers("-1"), "timerange").is_err() && number(&headers("a day"), "timerange").is_err());
        assert!(flag(&headers("TRUE"), "timerange").unwrap() && flag(&headers("1"), "timerange").unwrap());
        assert!(!flag(&headers("false"), "timerange").unwrap() && !flag(&HeaderMap::new(), "timerange").unwrap());
        assert!(flag(&headers("perhaps"), "timerange").is_err());
    }
}
