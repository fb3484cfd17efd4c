//! How a stream of a PDF is decoded. Where a document says it in several ways, programs differ, and each way is tried.

use std::io::{self, BufReader, Read, SeekFrom};

use super::encryption::Encryption;
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
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    is_encrypted: bool,
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
    if let Some(encryption) = encryption.filter(|_| plan.is_encrypted) {
        data = encryption.stream(data, stream.id);
    }
    for (filter, parameters) in &plan.filters {
        data = filters::decoder(filter, parameters.as_ref(), data)?;
    }
    Ok(data)
}

impl Walk<'_, '_> {
    /// How a stream is decoded: in more than one way if programs differ in that.
    pub(super) fn plans(&mut self, stream: &StreamObject) -> io::Result<Vec<Plan>> {
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
                is_encrypted: self.is_encrypted(stream),
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
        let is_encrypted = self.is_encrypted(stream);
        let mut plan = Plan { is_encrypted, filters: Vec::new(), extension: None, has_more: false };
        for (at, filter) in filters.iter().enumerate() {
            let filter = filter.name().ok_or_else(|| invalid("a filter without a name"))?;
            if filter == b"Crypt" {
                // The one that a stream names for itself is mostly that which does nothing.
                let named = parameters.get(at).and_then(|parameters| parameters.get("Name")).and_then(Value::name);
                plan.is_encrypted &= named.is_some_and(|name| name != b"Identity");
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

    fn is_encrypted(&self, stream: &StreamObject) -> bool {
        let Some(encryption) = &self.encryption else { return false };
        !stream.dictionary.is("Type", "XRef") && (encryption.metadata || !stream.dictionary.is("Type", "Metadata"))
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
