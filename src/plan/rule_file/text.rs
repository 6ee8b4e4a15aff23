//! The YAML of a rule file, read with the place of every word, so that each mistake is told with line and column.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_saphyr::{Spanned, from_str};

use super::blocks::Blocks;
use super::{Action, Amount, Error, Fill, From, PlacementRule, Position, RuleFile, Select};
use crate::bytes::Bytes;
use crate::placement::pattern;
use crate::rules::Role;

/// A file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    description: String,
    rules: Vec<Spanned<RuleText>>,
}

/// A rule as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    role: Option<Spanned<String>>,
    tensors: Option<Spanned<String>>,
    blocks: Option<Spanned<String>>,
    kinds: Option<Spanned<Vec<String>>>,
    buffer: Option<Spanned<String>>,
    fill: Option<Spanned<FillText>>,
    order: Option<Spanned<Vec<String>>>,
    from: Option<Spanned<String>>,
    then: Option<Spanned<String>>,
}

/// The fields of a file and of a rule, for suggestions.
const FIELDS: &[&str] =
    &["description", "rules", "role", "tensors", "blocks", "kinds", "buffer", "fill", "order", "from", "then"];

/// `DEVICE: AMOUNT` in the order written.
#[derive(Debug)]
struct FillText(Vec<(String, Spanned<String>)>);

impl<'de> Deserialize<'de> for FillText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = FillText;

            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str("devices and how far to fill each, for example {CUDA0: 22G, CUDA1: rest}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FillText, A::Error> {
                let mut pairs: Vec<(String, Spanned<String>)> = Vec::new();
                while let Some((device, amount)) = map.next_entry::<String, Spanned<String>>()? {
                    if pairs.iter().any(|(known, _)| *known == device) {
                        return Err(A::Error::custom(format!("`{device}` is filled twice")));
                    }
                    pairs.push((device, amount));
                }
                Ok(FillText(pairs))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

/// Where a value stands.
fn position<T>(value: &Spanned<T>) -> Position {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(value.referenced.line()), column: number(value.referenced.column()) }
}

/// Reads a rule file's text; `name` is for messages.
pub(super) fn parse(name: &str, text: &str) -> Result<RuleFile, Error> {
    let file: FileText = from_str(text).map_err(|error| yaml(name, &error))?;
    let at = |position, problem| Error { name: name.to_string(), position, problem };
    let rules = file.rules.iter().map(|text| rule(text).map_err(|(position, problem)| at(position, problem)));
    Ok(RuleFile { description: file.description, rules: rules.collect::<Result<_, _>>()? })
}

/// What the YAML reader says, in one line, with the nearest name where one is unknown.
fn yaml(name: &str, error: &serde_saphyr::Error) -> Error {
    let position = error.location().map(|location| Position {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    });
    let plain = error.without_snippet().to_string();
    let message = plain.lines().next().unwrap_or_default();
    // The place is told once, before the message.
    let message = message.split(" at line ").next().unwrap_or(message);
    let unknown = message.split_once("unknown field `").and_then(|(_, rest)| rest.split('`').next());
    let near = unknown.and_then(|field| nearest(field, FIELDS)).map(|near| format!("; did you mean `{near}`?"));
    let problem = format!("{message}{}", near.unwrap_or_default());
    Error { name: name.to_string(), position: position.unwrap_or_default(), problem }
}

/// A mistake and where it is.
type Mistake = (Position, String);

/// What a rule says.
fn rule(text: &Spanned<RuleText>) -> Result<PlacementRule, Mistake> {
    let here = position(text);
    let RuleText { role, tensors, blocks, kinds, buffer, fill, order, from, then } = &text.value;
    let select = match (role, tensors) {
        (Some(role), None) => Select::Role {
            role: of_name(role)?,
            kinds: kinds.as_ref().map(|kinds| some(kinds, "kinds")).transpose()?.unwrap_or_default(),
            blocks: blocks.as_ref().map(ranges).transpose()?,
        },
        (None, Some(tensors)) => {
            if let Some(at) = blocks.as_ref().map(position).or(kinds.as_ref().map(position)) {
                let problem = "`blocks` and `kinds` go with `role`; write them into the regex of `tensors`";
                return Err((at, problem.to_string()));
            }
            Select::Pattern(regex(tensors)?)
        }
        _ => return Err((here, "state either `role` or `tensors`, one of them".to_string())),
    };
    let action = match (buffer, fill) {
        (Some(buffer), None) => {
            let stray = order.as_ref().map(position).or(from.as_ref().map(position)).or(then.as_ref().map(position));
            if let Some(at) = stray {
                return Err((at, "`order`, `from` and `then` go with `fill`".to_string()));
            }
            Action::Buffer(buffer_name(buffer)?)
        }
        (None, Some(fill)) => Action::Fill(Fill {
            devices: amounts(fill)?,
            order: order.as_ref().map(|order| some(order, "order")).transpose()?.unwrap_or_default(),
            from: from.as_ref().map(end).transpose()?.unwrap_or_default(),
            then: then.as_ref().map_or(Ok("CPU".to_string()), buffer_name)?,
        }),
        (None, None) => return Err((here, "state where to: `buffer: CPU`, or `fill: {CUDA0: 22G}`".to_string())),
        (Some(buffer), Some(_)) => {
            return Err((position(buffer), "state either `buffer` or `fill`, one of them".to_string()));
        }
    };
    Ok(PlacementRule { position: here, select, action })
}

/// A role by its name.
fn of_name(text: &Spanned<String>) -> Result<Role, Mistake> {
    let names = Role::ALL.map(Role::key);
    Role::ALL.into_iter().find(|role| role.key() == text.value).ok_or_else(|| {
        let near = nearest(&text.value, &names).map(|near| format!("; did you mean `{near}`?"));
        let known = names.join(", ");
        (position(text), format!("`{}` is no role{} (known: {known})", text.value, near.unwrap_or_default()))
    })
}

/// A list with something in it.
fn some(list: &Spanned<Vec<String>>, field: &str) -> Result<Vec<String>, Mistake> {
    let twice =
        list.value.iter().enumerate().find(|(at, kind)| list.value.iter().take(*at).any(|other| other == *kind));
    match twice {
        Some((_, kind)) => Err((position(list), format!("`{field}` names `{kind}` twice"))),
        None if list.value.is_empty() => Err((position(list), format!("`{field}` is empty: leave it out"))),
        None => Ok(list.value.clone()),
    }
}

/// A list of blocks.
fn ranges(text: &Spanned<String>) -> Result<Blocks, Mistake> {
    Blocks::parse(&text.value).ok_or_else(|| {
        let forms = "`3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`";
        (position(text), format!("`{}` is no list of blocks: write it as {forms}", text.value))
    })
}

/// A regex that llama.cpp can be given.
fn regex(text: &Spanned<String>) -> Result<String, Mistake> {
    let refuse = |problem: String| Err((position(text), problem));
    if text.value.contains([',', '=']) {
        return refuse(format!("`{}` has a `,` or `=`, which llama.cpp's -ot cannot take", text.value));
    }
    match pattern::parse(&text.value) {
        Ok(_) => Ok(text.value.clone()),
        Err(reason) => refuse(format!("`{}` is no regex of llama.cpp's: {reason}", text.value)),
    }
}

/// A buffer type's name.
fn buffer_name(text: &Spanned<String>) -> Result<String, Mistake> {
    let broken = text.value.is_empty() || text.value.contains([',', '=', ' ', '"', '\'']);
    if broken {
        return Err((position(text), format!("`{}` is no buffer: write CPU, CUDA0, …", text.value)));
    }
    Ok(text.value.clone())
}

/// Devices and amounts.
fn amounts(fill: &Spanned<FillText>) -> Result<Vec<(String, Amount)>, Mistake> {
    if fill.value.0.is_empty() {
        return Err((position(fill), "`fill` names no device: write {CUDA0: 22G}, or {devices: rest}".to_string()));
    }
    let amount = |(device, text): &(String, Spanned<String>)| {
        let amount = match text.value.as_str() {
            "rest" => Ok(Amount::Rest),
            size => size.parse::<Bytes>().map(Amount::UpTo).map_err(|error| (position(text), error.to_string())),
        }?;
        Ok((device.clone(), amount))
    };
    fill.value.0.iter().map(amount).collect()
}

/// Which blocks are filled first.
fn end(text: &Spanned<String>) -> Result<From, Mistake> {
    match text.value.as_str() {
        "first" => Ok(From::First),
        "last" => Ok(From::Last),
        other => Err((position(text), format!("`from` is `first` or `last`, not `{other}`"))),
    }
}

/// The candidate that a person most likely meant.
fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let starts = |name: &str| !word.is_empty() && (name.starts_with(word) || word.starts_with(name));
    let contains = |name: &str| name.split('_').any(|part| part == word.trim_end_matches('s'));
    let distance = |name: &str| {
        let mut row: Vec<usize> = (0..=name.chars().count()).collect();
        for (i, a) in word.chars().enumerate() {
            let mut before = i;
            let mut left = i + 1;
            for (cell, b) in row.iter_mut().skip(1).zip(name.chars()) {
                let here = (before + usize::from(a != b)).min(left + 1).min(*cell + 1);
                before = *cell;
                *cell = here;
                left = here;
            }
            if let Some(first) = row.first_mut() {
                *first = i + 1;
            }
        }
        row.last().copied().unwrap_or(usize::MAX)
    };
    let close = candidates.iter().map(|name| (distance(name), *name)).min().filter(|(far, _)| *far <= 2);
    let likely = || candidates.iter().copied().find(|name| starts(name) || contains(name));
    close.map(|(_, name)| name).or_else(likely)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_meant() {
        let roles = Role::ALL.map(Role::key);
        assert_eq!(nearest("expert", &roles), Some("routed_expert"));
        assert_eq!(nearest("routed_experts", &roles), Some("routed_expert"));
        assert_eq!(nearest("atention", &roles), Some("attention"));
        assert_eq!(nearest("rol", FIELDS), Some("role"));
        assert_eq!(nearest("zzzzzz", FIELDS), None);
    }
}
