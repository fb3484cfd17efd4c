//! OTLP's messages, as far as traces need them: `ExportTraceServiceRequest` of opentelemetry-proto 1.x. The numbers are the fields'
//! in its `collector/trace/v1`, `trace/v1`, `resource/v1` and `common/v1`.

use protobuf::{CodedOutputStream, Result};

use super::span::{Place, Span, Value};

/// `Span.SpanKind`.
const KIND_INTERNAL: i32 = 1;
const KIND_SERVER: i32 = 2;
/// `Status.StatusCode`.
const STATUS_ERROR: i32 = 2;

/// Who sends: attributes of the process, by OpenTelemetry's names.
pub type Resource = Vec<(&'static str, Value)>;

/// A request that tells of these spans.
pub fn request(resource: &Resource, spans: &[Span]) -> Result<Vec<u8>> {
    message(|request| {
        within(request, 1, |resource_spans| {
            within(resource_spans, 1, |it| resource.iter().try_for_each(|(key, value)| attribute(it, 1, key, value)))?;
            within(resource_spans, 2, |scope_spans| {
                within(scope_spans, 1, |scope| {
                    scope.write_string(1, env!("CARGO_PKG_NAME"))?;
                    scope.write_string(2, env!("CARGO_PKG_VERSION"))
                })?;
                spans.iter().try_for_each(|span| within(scope_spans, 2, |it| write_span(it, span)))
            })
        })
    })
}

fn write_span(it: &mut CodedOutputStream<'_>, span: &Span) -> Result<()> {
    write_place(it, span.place)?;
    if let Some(parent) = &span.parent {
        it.write_bytes(4, parent)?;
    }
    it.write_string(5, &span.name)?;
    it.write_enum(6, if span.is_server { KIND_SERVER } else { KIND_INTERNAL })?;
    it.write_fixed64(7, span.start_ns)?;
    it.write_fixed64(8, span.end_ns)?;
    span.attributes.iter().try_for_each(|(key, value)| attribute(it, 9, key, value))?;
    if let Some(cause) = span.cause {
        within(it, 13, |link| write_place(link, cause))?;
    }
    if span.failed {
        within(it, 15, |status| status.write_enum(3, STATUS_ERROR))?;
    }
    Ok(())
}

fn write_place(it: &mut CodedOutputStream<'_>, place: Place) -> Result<()> {
    it.write_bytes(1, &place.trace)?;
    it.write_bytes(2, &place.span)
}

fn attribute(it: &mut CodedOutputStream<'_>, field: u32, key: &str, value: &Value) -> Result<()> {
    within(it, field, |pair| {
        pair.write_string(1, key)?;
        within(pair, 2, |any| match value {
            Value::Text(text) => any.write_string(1, text),
            Value::Flag(flag) => any.write_bool(2, *flag),
            Value::Integer(number) => any.write_int64(3, *number),
            Value::Number(number) => any.write_double(4, *number),
        })
    })
}

/// A message as a field of another one.
fn within(
    outer: &mut CodedOutputStream<'_>,
    field: u32,
    write: impl FnOnce(&mut CodedOutputStream<'_>) -> Result<()>,
) -> Result<()> {
    outer.write_bytes(field, &message(write)?)
}

fn message(write: impl FnOnce(&mut CodedOutputStream<'_>) -> Result<()>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut bytes);
    write(&mut stream)?;
    stream.flush()?;
    drop(stream);
    Ok(bytes)
}
