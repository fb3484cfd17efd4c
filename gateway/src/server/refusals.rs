//! What the HTTP library refuses by itself, before there is a request that a route could answer: a header that is too long, or
//! is no HTTP. It answers a status alone; clients of this API expect `{"err": "..."}` with every error.
//!
//! So its answer is replaced on its way out. **Invariant.** Nothing that a route answers is ever touched: looked at is only
//! what is written while no request is being answered and everything that was answered before has gone out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Buf, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::options::{HEADER_BYTES_MAX, HEADERS_MAX};

/// What the library says of the body that it doesn't send.
const NO_BODY: &str = "content-length: 0\r\n";

/// A connection of HTTP/1.1 whose refusals say why.
pub(super) struct Explained<T> {
    inner: T,
    answering: Arc<AtomicBool>,
    /// Whether all that was written has gone out.
    flushed: bool,
    /// What goes out instead of what was to be written, and how long that was.
    instead: Option<(Bytes, usize)>,
}

/// Tells a connection that a request is being answered, until the end of the answer's body.
pub(super) struct Answering(Arc<AtomicBool>);

impl<T> Explained<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, answering: Arc::default(), flushed: true, instead: None }
    }

    /// What is to begin an [`Answering`] for each request.
    pub(super) fn begins(&self) -> impl Fn() -> Answering + Send + Sync + 'static {
        let answering = Arc::clone(&self.answering);
        move || {
            answering.store(true, Ordering::Release);
            Answering(Arc::clone(&answering))
        }
    }

    fn is_idle(&self) -> bool {
        self.flushed && !self.answering.load(Ordering::Acquire)
    }
}

impl Answering {
    /// The body, at whose end the request is answered.
    pub(super) fn until_the_end_of(self, body: Body) -> Body {
        Body::new(Answer { body, _answering: self })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The library's refusal with a body that says why; none if the text is no such refusal.
fn explained(text: &[u8]) -> Option<Bytes> {
    let head = std::str::from_utf8(text).ok().filter(|head| head.ends_with("\r\n\r\n"))?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let why = match status {
        "400" => "The request is not valid HTTP.".to_owned(),
        "414" => "The URL is too long.".to_owned(),
        "431" => format!("The header has more than {HEADER_BYTES_MAX} bytes or {HEADERS_MAX} fields."),
        _ => return None,
    };
    let (before, after) = head.split_once(NO_BODY)?;
    let body = serde_json::json!({ "err": why }).to_string();
    let length = body.len();
    Some(format!("{before}content-type: application/json\r\ncontent-length: {length}\r\n{after}{body}").into())
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Explained<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none() && this.is_idle() {
            this.instead = explained(bytes).map(|text| (text, bytes.len()));
        }
        this.flushed = false;
        let Some((text, replaced)) = &mut this.instead else {
            return Pin::new(&mut this.inner).poll_write(context, bytes);
        };
        while text.has_remaining() {
            match ready!(Pin::new(&mut this.inner).poll_write(context, text))? {
                0 => return Poll::Ready(Ok(0)),
                written => text.advance(written),
            }
        }
        let replaced = *replaced;
        this.instead = None;
        Poll::Ready(Ok(replaced))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_some() || self.is_idle() {
            // A refusal is one piece.
            let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
            return self.poll_write(context, first);
        }
        self.flushed = false;
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        // The library flushes when it has written all that it had.
        self.flushed = !self.answering.load(Ordering::Acquire);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Explained<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const REFUSAL: &[u8] =
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn only_what_nobody_answered_is_replaced_however_little_the_network_takes() {
        let (stream, mut client) = tokio::io::duplex(7);
        let mut stream = Explained::new(stream);
        let begin = stream.begins();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut client, &mut all).await.unwrap();
            String::from_utf8(all).unwrap()
        });
        // A file that looks like a refusal.
        let answering = begin();
        stream.write_all(REFUSAL).await.unwrap();
        stream.flush().await.unwrap();
        drop(answering);
        // It is answered, and its last bytes may still be on their way.
        stream.write_all(REFUSAL).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(REFUSAL).await.unwrap();
        drop(stream);
        let all = reading.await.unwrap();
        let untouched = std::str::from_utf8(REFUSAL).unwrap().repeat(2);
        let refusal = all.strip_prefix(&untouched).expect("what was answered goes out as it is");
        let (head, body) = refusal.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json") && !head.contains("content-length: 0"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(serde_json::from_str::<serde_json::Value>(body).unwrap()["err"].is_string(), "{body}");
    }

    #[test]
    fn other_answers_are_no_refusals() {
        for text in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nmore",
            b"HTTP/1.1 4",
            b"\xff",
            b"",
        ] {
            assert_eq!(explained(text), None);
        }
    }
}
