//! From `tracing`'s spans to those that are sent.
//!
//! Some fields are no attributes: `otel.name` names the span better than a constant can, `otel.kind` (`server`) tells what it
//! is, `otel.status_code` (`ERROR`) that it failed; `started_unix_ms` and `took_ms` give it other times than its own; `traceparent`
//! is what a client's request said of its own span.

use std::collections::hash_map::RandomState;
use std::fmt::{self, Debug};
use std::hash::BuildHasher;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::export::Queue;

/// Longest text of an attribute; the rest is cut off.
const TEXT_BYTES_MAX: usize = 256;
/// Most attributes of one span. Ours have fewer.
const ATTRIBUTES_MAX: usize = 16;
const NANOS_PER_MS: u64 = 1_000_000;

/// Hands finished spans to the queue.
pub struct Spans {
    pub queue: Queue,
    /// Traces whose id, read as a number, is below this are sent.
    pub sampled_below: u128,
}

/// A span's place: its trace and its own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub trace: [u8; 16],
    pub span: [u8; 8],
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Integer(i64),
    Number(f64),
    Flag(bool),
}

/// A span, from its beginning until it is sent.
#[derive(Debug, Clone)]
pub struct Span {
    pub place: Place,
    pub parent: Option<[u8; 8]>,
    /// The span of a client's that led to this one.
    pub cause: Option<Place>,
    pub name: String,
    pub is_server: bool,
    pub failed: bool,
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Vec<(&'static str, Value)>,
    begun: Instant,
    /// How long before that it is said to have begun.
    earlier_ns: u64,
    took_ms: Option<u64>,
    /// The file that it is about.
    data_id: Option<[u8; 16]>,
}

impl Span {
    fn new(name: &str) -> Self {
        Self {
            place: Place { trace: random_trace(), span: random().to_be_bytes() },
            parent: None,
            cause: None,
            name: name.to_owned(),
            is_server: false,
            failed: false,
            start_ns: unix_ns(),
            end_ns: 0,
            attributes: Vec::new(),
            begun: Instant::now(),
            earlier_ns: 0,
            took_ms: None,
            data_id: None,
        }
    }

    fn attribute(&mut self, field: &Field, value: Value) {
        if self.attributes.len() < ATTRIBUTES_MAX {
            self.attributes.push((field.name(), value));
        }
    }

    fn end(&mut self) {
        let took_ns = match self.took_ms {
            Some(ms) => ms.saturating_mul(NANOS_PER_MS),
            None => self.earlier_ns.saturating_add(nanos(self.begun.elapsed())),
        };
        self.end_ns = self.start_ns.saturating_add(took_ns);
    }
}

impl Visit for Span {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "otel.name" => value.clone_into(&mut self.name),
            "otel.kind" => self.is_server = value == "server",
            "otel.status_code" => self.failed = value == "ERROR",
            "traceparent" => self.cause = parse_traceparent(value),
            name => {
                if name == "data_id" {
                    self.data_id = bytes_of(value);
                }
                self.attribute(field, Value::Text(cut(value)));
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &bounded(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            // Never later than now, however far another machine's clock is ahead.
            "started_unix_ms" => {
                let start_ns = value.saturating_mul(NANOS_PER_MS).min(self.start_ns);
                self.earlier_ns = self.start_ns - start_ns;
                self.start_ns = start_ns;
            }
            "took_ms" => self.took_ms = Some(value),
            _ => self.attribute(field, Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.attribute(field, Value::Integer(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.attribute(field, Value::Flag(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.attribute(field, Value::Number(value));
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(registered) = context.span(id) else { return };
        let mut span = Span::new(attributes.metadata().name());
        attributes.record(&mut span);
        let parent = registered.parent().and_then(|parent| parent.extensions().get::<Span>().map(|span| span.place));
        match (parent, span.data_id) {
            (Some(parent), _) => {
                span.place.trace = parent.trace;
                span.parent = Some(parent.span);
            }
            // What is done about a file, after the request that submitted it.
            (None, Some(file)) => {
                let submission = submission(file);
                span.place.trace = submission.trace;
                span.parent = Some(submission.span);
            }
            (None, None) if span.is_server => {}
            // What else nobody asked for belongs to no trace: a store's read by a thread of the scanner, for instance.
            (None, None) => return,
        }
        registered.extensions_mut().insert(span);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(registered) = context.span(id) else { return };
        let mut extensions = registered.extensions_mut();
        let Some(span) = extensions.get_mut::<Span>() else { return };
        let before = span.data_id;
        values.record(span);
        // A request that turns out to submit a file, before anything in it has begun.
        if let (Some(file), None, None) = (span.data_id, before, span.parent) {
            span.place = submission(file);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(mut span) = context.span(&id).and_then(|span| span.extensions_mut().remove::<Span>()) else { return };
        if u128::from_be_bytes(span.place.trace) < self.sampled_below {
            span.end();
            self.queue.push(span);
        }
    }
}

/// The place of the request that submitted a file.
fn submission(file: [u8; 16]) -> Place {
    let [.., a, b, c, d, e, f, g, h] = file;
    Place { trace: file, span: [a, b, c, d, e, f, g, h] }
}

/// A client's place, by the header of W3C's Trace Context (version 00): `00-<trace>-<span>-<flags>`.
fn parse_traceparent(text: &str) -> Option<Place> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let place = Place { trace: bytes_of(trace)?, span: bytes_of(span)? };
    (version == "00" && place.trace != [0; 16] && place.span != [0; 8]).then_some(place)
}

fn bytes_of<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

fn unix_ns() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Sixteen bytes that no other trace has.
fn random_trace() -> [u8; 16] {
    ((u128::from(random()) << 64) | u128::from(random())).to_be_bytes()
}

/// No secret, just another number each time: keys of the standard library's hash tables.
fn random() -> u64 {
    RandomState::new().hash_one(0u8) | 1
}

fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default().to_owned()
}

/// What a value writes of itself, without keeping more than is sent.
fn bounded(value: &dyn Debug) -> String {
    struct Bounded(String);
    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = TEXT_BYTES_MAX.saturating_sub(self.0.len());
            self.0.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
            Ok(())
        }
    }
    let mut text = Bounded(String::new());
    let _ = fmt::write(&mut text, format_args!("{value:?}"));
    text.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::field::Empty;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::traces::export::testing;

    const FILE: &str = "00112233445566778899aabbccddeeff";

    /// The spans that `work` leaves, in the order in which they ended.
    fn spans(sampled_below: u128, work: impl FnOnce()) -> Vec<Span> {
        let (queue, sent) = testing::queue(64);
        let subscriber = tracing_subscriber::registry().with(Spans { queue, sampled_below });
        tracing::subscriber::with_default(subscriber, work);
        sent.try_iter().filter_map(testing::span).collect()
    }

    fn submit_and_scan() {
        let request = tracing::trace_span!("http", otel.name = "POST /file", otel.kind = "server", data_id = Empty);
        request.record("data_id", FILE);
        tracing::trace_span!(parent: &request, "store put", bytes = 5u64).in_scope(|| {});
        drop(request);
        let analysis = tracing::trace_span!("analysis", data_id = FILE);
        tracing::trace_span!(parent: &analysis, "queue wait", started_unix_ms = 1_000u64, took_ms = 7u64);
    }

    #[test]
    fn what_is_done_about_a_file_is_one_trace_whoever_does_it() {
        let spans = spans(u128::MAX, submit_and_scan);
        let [put, request, waited, analysis] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(request.name, "POST /file");
        assert!(spans.iter().all(|span| hex::encode(span.place.trace) == FILE));
        assert_eq!((request.parent, put.parent), (None, Some(request.place.span)));
        assert_eq!((analysis.parent, waited.parent), (Some(request.place.span), Some(analysis.place.span)));
        assert_eq!((waited.start_ns, waited.end_ns), (1_000_000_000, 1_007_000_000));
        assert_eq!(put.attributes, [("bytes", Value::Integer(5))]);
    }

    #[test]
    fn a_share_of_the_traces_is_sent_and_each_as_a_whole() {
        let file = u128::from_be_bytes(bytes_of(FILE).unwrap());
        assert_eq!(spans(file, submit_and_scan).len(), 0);
        assert_eq!(spans(file + 1, submit_and_scan).len(), 4);
    }

    #[test]
    fn what_belongs_to_no_request_and_no_file_is_no_trace_and_texts_are_bounded() {
        let spans = spans(u128::MAX, || {
            tracing::trace_span!("store get").in_scope(|| {});
            let long = "ü".repeat(1_000);
            let client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            tracing::trace_span!("http", otel.kind = "server", long, debug = ?"x".repeat(999), traceparent = client);
        });
        let [request] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(request.cause.map(|cause| hex::encode(cause.span)), Some("b7ad6b7169203331".to_owned()));
        assert_ne!(request.place.trace, request.cause.unwrap().trace, "a client decides nobody's id");
        for (_, value) in &request.attributes {
            assert!(matches!(value, Value::Text(text) if text.len() == TEXT_BYTES_MAX), "{value:?}");
        }
        for bad in
            ["", "00-1-2-3", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-é-b7ad6b7169203331-01"]
        {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_beginning_that_was_told_counts_up_to_now() {
        let spans = spans(u128::MAX, || {
            let before = unix_ns() / NANOS_PER_MS - 5_000;
            tracing::trace_span!("analysis", data_id = FILE, started_unix_ms = before);
            tracing::trace_span!("analysis", data_id = FILE, started_unix_ms = u64::MAX);
        });
        let took: Vec<Duration> = spans.iter().map(|span| Duration::from_nanos(span.end_ns - span.start_ns)).collect();
        assert!((5_000..6_000).contains(&took[0].as_millis()) && took[1] < Duration::from_secs(1), "{took:?}");
    }
}
