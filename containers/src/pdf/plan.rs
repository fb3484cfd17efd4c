//! How a stream of a PDF is decoded. Where a document says it in several ways, programs differ, and each way is tried.

use std::io::{self, BufReader, Read, SeekFrom};

use super::encryption::{Encryption, Method};
use super::object::Value;
use super::{StreamObject, Walk, filters};
use crate::container::ReadSeek;
use crate::fields::invalid;

/// In how many ways a stream is decoded at most. Real ones can be decoded in one.
const PLANS_MAX: usize = 16;

/// What a program takes where a document says something in two ways.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Choice {
    /// Of two entries with one name the last.
    takes_last: bool,
    /// Of several definitions of an object this one, not the last.
    definition: Option<usize>,
    /// Filters that make images do nothing, if others follow.
    passes_over_images: bool,
}

/// How a stream is decoded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    cipher: Method,
    /// Decrypted as the document does not have it for this stream, but as some programs do. That this fails says nothing.
    pub(super) is_other_cipher: bool,
    /// The filters with their parameters.
    filters: Vec<(Vec<u8>, Option<Value>)>,
    /// What comes out is an image, or something else that is a file by itself.
    pub(super) extension: Option<&'static str>,
    /// Filters follow that are not undone, or were.
    has_more: bool,
}

/// A stream's data, decoded as far as is planned.
pub(super) fn decoded<'d>(
    input: &'d mut dyn ReadSeek,
    encryption: Option<&Encryption>,
    stream: &StreamObject,
    plan: &Plan,
) -> io::Result<Box<dyn Read + 'd>> {
    input.seek(SeekFrom::Start(stream.start))?;
    let data = input.take(stream.end.saturating_sub(stream.start));
    let mut data: Box<dyn Read + 'd> = Box::new(BufReader::new(data));
    if let Some(encryption) = encryption {
        data = encryption.reader(plan.cipher, data, stream.id);
    }
    for (filter, parameters) in &plan.filters {
        data = filters::decoder(filter, parameters.as_ref(), data)?;
    }
    Ok(data)
}

impl Walk<'_, '_> {
    /// How a stream is decoded: in more than one way if programs differ in that.
    pub(super) fn plans(&mut self, stream: &StreamObject) -> io::Result<Vec<Plan>> {
        let mut plans = self.plans_of_filters(stream)?;
        self.add_ciphers(&mut plans);
        Ok(plans)
    }

    /// Programs take attachments for what `EFF` says or for streams like others, and some overlook what a stream says of itself, or
    /// believe of a cross-reference table only if it is used as one that it is not encrypted. A real one that is decrypted is nothing.
    fn add_ciphers(&self, plans: &mut Vec<Plan>) {
        let Some(encryption) = &self.encryption else { return };
        let as_said = plans.clone();
        for cipher in [encryption.streams, encryption.embedded] {
            for plan in &as_said {
                let other = Plan { cipher, is_other_cipher: true, ..plan.clone() };
                let is_same = |plan: &Plan| Plan { is_other_cipher: true, ..plan.clone() } == other;
                if plans.len() < PLANS_MAX && !plans.iter().any(is_same) {
                    plans.push(other);
                }
            }
        }
    }

    fn plans_of_filters(&mut self, stream: &StreamObject) -> io::Result<Vec<Plan>> {
        let plans = self.plans_as_said(stream);
        let Some(filters) = &stream.doubtful_filters else { return plans };
        let mut plans = plans.unwrap_or_else(|error| {
            self.outcome.note_error(&format!("object {}", stream.id.0), &error);
            Vec::new()
        });
        // A program that knows less of the dictionary, or more.
        for filters in [filters.as_slice(), &[]] {
            let image = filters.iter().position(|filter| filters::extension(filter).is_some());
            let plan = Plan {
                cipher: self.cipher(stream),
                is_other_cipher: false,
                filters: filters
                    .iter()
                    .take(image.unwrap_or(filters.len()))
                    .map(|filter| (filter.clone(), None))
                    .collect(),
                extension: image.and_then(|at| filters::extension(filters.get(at)?)),
                has_more: false,
            };
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        Ok(plans)
    }

    fn plans_as_said(&mut self, stream: &StreamObject) -> io::Result<Vec<Plan>> {
        let first = self.plan(stream, Choice::default())?;
        let entries = match &stream.dictionary {
            Value::Dictionary(entries) => entries.as_slice(),
            _ => &[],
        };
        let is_filter = |(key, _): &&(Vec<u8>, Value)| matches!(&**key, b"Filter" | b"F");
        let is_twice = entries.iter().filter(is_filter).count() > 1;
        let mut definitions = 0;
        let filters = entries.iter().filter(is_filter).map(|(_, value)| value);
        for value in filters.flat_map(|value| {
            if let Value::Array(values) = value { values.iter() } else { std::slice::from_ref(value).iter() }
        }) {
            let places = value.reference().and_then(|number| self.definitions.get(&number));
            definitions = definitions.max(places.map_or(0, Vec::len));
        }
        let mut plans = vec![first];
        if !is_twice && definitions == 0 && plans.iter().all(|plan| !plan.has_more) {
            return Ok(plans);
        }
        for takes_last in [false, true] {
            for definition in std::iter::once(None).chain((0..definitions).map(Some)) {
                for passes_over_images in [false, true] {
                    let Ok(plan) = self.plan(stream, Choice { takes_last, definition, passes_over_images }) else {
                        continue;
                    };
                    if !plans.contains(&plan) && plans.len() < PLANS_MAX {
                        plans.push(plan);
                    }
                }
            }
        }
        Ok(plans)
    }

    /// How a stream is decoded by a program that chooses like this.
    pub(super) fn plan(&mut self, stream: &StreamObject, choice: Choice) -> io::Result<Plan> {
        let get = |name| {
            if choice.takes_last { stream.dictionary.get_last(name) } else { stream.dictionary.get(name) }
        };
        let filters = self.resolved_list(get("Filter"), choice.definition)?;
        let parameters = get("DecodeParms").or_else(|| get("DP"));
        let parameters = self.resolved_list(parameters, choice.definition)?;
        if filters.len() > filters::FILTERS_MAX {
            return Err(invalid(format!("a stream with more than {} filters", filters::FILTERS_MAX)));
        }
        let cipher = self.cipher(stream);
        let mut plan = Plan { cipher, is_other_cipher: false, filters: Vec::new(), extension: None, has_more: false };
        for (at, filter) in filters.iter().enumerate() {
            let filter = filter.name().ok_or_else(|| invalid("a filter without a name"))?;
            if filter == b"Crypt" {
                // Mostly that which does nothing.
                let name = parameters.get(at).and_then(|parameters| parameters.get("Name")).cloned();
                let name = self.resolved(&name.unwrap_or(Value::Other), choice.definition)?;
                plan.cipher = match (&self.encryption, name.name()) {
                    (Some(encryption), Some(name)) => {
                        encryption.named(name).ok_or_else(|| invalid("it is encrypted in a way that is not known"))?
                    }
                    _ => Method::Not,
                };
                continue;
            }
            plan.extension = filters::extension(filter);
            if plan.extension.is_some() {
                plan.has_more = at + 1 < filters.len();
                if plan.has_more && choice.passes_over_images {
                    continue;
                }
                break;
            }
            plan.filters.push((filter.to_vec(), parameters.get(at).cloned()));
        }
        Ok(plan)
    }

    /// How a stream is encrypted that says nothing of that itself.
    fn cipher(&self, stream: &StreamObject) -> Method {
        let Some(encryption) = &self.encryption else { return Method::Not };
        let is = |kind| stream.dictionary.is("Type", kind);
        if is("XRef") || (is("Metadata") && !encryption.metadata) {
            Method::Not
        } else if is("EmbeddedFile") || self.names.contains_key(&stream.id.0) {
            encryption.embedded
        } else {
            encryption.streams
        }
    }

    /// A value, or the values of an array, with references resolved.
    fn resolved_list(&mut self, value: Option<&Value>, definition: Option<usize>) -> io::Result<Vec<Value>> {
        let Some(value) = value else { return Ok(Vec::new()) };
        match self.resolved(value, definition)? {
            Value::Array(values) => {
                values.iter().take(filters::FILTERS_MAX + 1).map(|value| self.resolved(value, definition)).collect()
            }
            Value::Other => Ok(Vec::new()),
            value => Ok(vec![value]),
        }
    }

    /// A value, with a reference resolved: to the definition that counts, or to another if there are several.
    pub(super) fn resolved(&mut self, value: &Value, definition: Option<usize>) -> io::Result<Value> {
        let other = |number: u32| self.definitions.get(&number)?.get(definition?).copied();
        match value.reference().map(|number| other(number).or_else(|| self.offsets.get(&number).copied())) {
            None => Ok(value.clone()),
            Some(Some(offset)) => Ok(self.object(offset)?.value),
            Some(None) => Ok(Value::Other),
        }
    }
}
