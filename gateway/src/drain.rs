//! Reads on after an answer that came before the end of its request's body, and drops what comes.
//!
//! A connection that is closed with unread bytes is reset, and the reset overtakes the answer: the client sees a broken
//! connection where it was told why it is refused. Many clients send all of a body before they look for an answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};

/// How long a client may take to send what nobody wants, and how long it may pause. Whoever takes longer sees its connection end.
const TIME_MAX: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Sees to it that the request's body is read to its end, whatever becomes of the request.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    let is_awaited = request.headers().contains_key(header::EXPECT);
    next.run(request.map(|body| Body::new(Drained { body: Some(body), is_awaited }))).await
}

/// A body of which the rest is read when it is dropped.
struct Drained {
    /// None at its end, and after an error.
    body: Option<Body>,
    /// The client waits for `100 Continue` and sends nothing before, so that there is nothing to read.
    is_awaited: bool,
}

impl HttpBody for Drained {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.is_awaited = false;
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !self.is_awaited && !body.is_end_stream()) else { return };
        let mut rest = body.into_data_stream();
        let reading = async move { while let Ok(Some(Ok(_))) = tokio::time::timeout(PAUSE_MAX, rest.next()).await {} };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(TIME_MAX, reading));
        }
    }
}
