//! `rules/loader/*.txt` as lines to walk.
//!
//! A line is a key (`u32? attention.sliding_window -> n_swa`), a tensor (`.attn_q.weight [n_embd, n_embd_q] | flags`; a dot in
//! front is `blk.{i}.`, `?` is optional), `let`, `set`, `fill`, `copy`, `alias LAYER = LAYER`, `need TENSOR`, `assert`, `refuse CONDITION: message`, `if`, `else`,
//! `for i in a..b`, or `use GROUP(…)`; what is indented belongs to the line above. A group's `$1` is its first argument, 0
//! where there is none.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::arch::Arch;
use crate::expression::Expr;

static FILES: include_dir::Dir<'static> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/rules/loader");

/// The rules of an architecture.
pub(super) struct Rules {
    /// `def NAME = …` and `def NAME[i] = …`.
    pub(super) defs: HashMap<String, Expr>,
    /// What is read before the tensors.
    pub(super) keys: Vec<Line>,
    /// The tensors; none where a file has no `tensors`: such architectures are not checked.
    pub(super) tensors: Vec<Line>,
    /// What the graph asserts of the numbers.
    pub(super) graph: Vec<Line>,
}

/// What a key's value has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ty {
    U32,
    I32,
    U64,
    F32,
    Bool,
    Str,
    OneOf(Vec<String>),
    /// The length of an array is read, whatever its elements.
    Count,
}

/// How many values a key has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Many {
    One,
    /// One for all, or an array of exactly so many (`get_key_or_arr`).
    Exactly(Expr),
    /// An array (`get_arr`).
    Array,
}

/// One line, with the lines that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Key {
        ty: Ty,
        many: Many,
        optional: bool,
        keys: Vec<String>,
        into: Option<String>,
    },
    Let(String, Expr),
    Set(String, Option<Expr>, Expr),
    Fill(String, Expr),
    Copy(String, String),
    /// A layer that has another's tensors.
    Alias(Expr, Expr),
    /// Tensors that the loader takes as optional and the graph reads.
    Need(Vec<String>),
    Assert(Expr, String),
    Refuse(Expr, String),
    If(Expr, Vec<Self>, Vec<Self>),
    For(String, Expr, Expr, Vec<Self>),
    Tensors {
        names: Vec<(String, bool)>,
        shape: Vec<Expr>,
        flags: Option<Expr>,
    },
}

/// A line and what is indented below it.
#[derive(Debug, Clone, Default)]
struct Node {
    text: String,
    below: Vec<Self>,
}

type Groups = HashMap<String, Vec<Node>>;

impl Rules {
    /// The rules of an architecture; of one without a file, what every architecture shares.
    pub(super) fn of(architecture: &str) -> Result<Arc<Self>, String> {
        // A model's keys and its tensors are walked one after the other, and the files of a folder are often of one kind.
        static READ: Mutex<BTreeMap<String, Arc<Rules>>> = Mutex::new(BTreeMap::new());
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        let name = Arch::of(architecture).loads_as.unwrap_or(architecture);
        if let Some(rules) = read.get(name) {
            return Ok(Arc::clone(rules));
        }
        let text = |name: &str| FILES.get_file(format!("{name}.txt"))?.contents_utf8();
        let own = text(name);
        let rules = Arc::new(Self::parse(text("groups").unwrap_or_default(), own.unwrap_or_default())?);
        if own.is_some() {
            read.insert(name.to_string(), Arc::clone(&rules));
        }
        Ok(rules)
    }

    fn parse(shared: &str, own: &str) -> Result<Self, String> {
        let (mut groups, mut defs) = (Groups::new(), HashMap::new());
        let mut lines = Vec::new();
        for node in nodes(shared).into_iter().chain(nodes(own)) {
            if let Some(name) = node.text.strip_prefix("group ") {
                groups.insert(name.to_string(), node.below);
            } else if let Some((name, expr)) = node.text.strip_prefix("def ").and_then(|text| text.split_once(" = ")) {
                let name = name.strip_suffix("[i]").unwrap_or(name);
                defs.insert(name.to_string(), expression(expr)?);
            } else {
                lines.push(node);
            }
        }
        let at = lines.iter().position(|node| node.text == "tensors");
        let mut tensors = at.map_or_else(Vec::new, |at| lines.split_off(at));
        let graph = tensors.iter().position(|node| node.text == "graph");
        let graph = graph.map_or_else(Vec::new, |at| tensors.split_off(at));
        let with = |first: &str, lines: Vec<Node>, last: &str| {
            let call = |name: &str| Node { text: format!("use {name}"), below: Vec::new() };
            let call = |name: &str| (!name.is_empty()).then(|| call(name));
            let lines: Vec<Node> = call(first).into_iter().chain(lines).chain(call(last)).collect();
            compile(&lines, &groups)
        };
        let graph = compile(graph.get(1..).unwrap_or_default(), &groups)?;
        let (tensors, last) = match tensors.get(1..) {
            Some(tensors) => (with("", tensors.to_vec(), "scales")?, "vocabulary"),
            None => (Vec::new(), ""),
        };
        Ok(Self { keys: with("keys", lines, last)?, tensors, graph, defs })
    }
}

/// The lines of a text as a tree; comments and empty lines are left out.
fn nodes(text: &str) -> Vec<Node> {
    fn take(lines: &mut std::iter::Peekable<std::slice::Iter<'_, (usize, &str)>>, depth: usize) -> Vec<Node> {
        let mut found = Vec::new();
        while let Some((_, text)) = lines.next_if(|(indent, _)| *indent >= depth) {
            found.push(Node { text: (*text).to_string(), below: take(lines, depth.saturating_add(1)) });
        }
        found
    }
    let code = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    let indented = code.map(|line| {
        let code = line.trim_start();
        (line.len().saturating_sub(code.len()) / 2, code.trim_end())
    });
    let lines: Vec<(usize, &str)> = indented.collect();
    take(&mut lines.iter().peekable(), 0)
}

fn expression(text: &str) -> Result<Expr, String> {
    Expr::parse(text).map_err(|error| error.to_string())
}

fn compile(nodes: &[Node], groups: &Groups) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    for node in nodes {
        let (word, rest) = node.text.split_once(' ').unwrap_or((&node.text, ""));
        let below = || compile(&node.below, groups);
        let pair = |by: &str| rest.split_once(by).ok_or_else(|| format!("`{}` without `{by}`", node.text));
        match word {
            "use" => lines.extend(used(rest, groups)?),
            "let" => {
                let (name, expr) = pair(" = ")?;
                lines.push(Line::Let(name.to_string(), expression(expr)?));
            }
            "set" => {
                let (name, expr) = pair(" = ")?;
                let (name, index) = match name.split_once('[') {
                    Some((name, index)) => (name, Some(expression(index.trim_end_matches(']'))?)),
                    None => (name, None),
                };
                lines.push(Line::Set(name.to_string(), index, expression(expr)?));
            }
            "fill" => {
                let (name, expr) = pair(" = ")?;
                lines.push(Line::Fill(name.to_string(), expression(expr)?));
            }
            "copy" => {
                let (from, to) = pair(" -> ")?;
                lines.push(Line::Copy(from.to_string(), to.to_string()));
            }
            "alias" => {
                let (layer, other) = pair(" = ")?;
                lines.push(Line::Alias(expression(layer)?, expression(other)?));
            }
            "need" => lines.push(Line::Need(rest.split(", ").map(ToString::to_string).collect())),
            "assert" => lines.push(Line::Assert(expression(rest)?, rest.to_string())),
            "refuse" => {
                let (condition, message) = pair(": ")?;
                lines.push(Line::Refuse(expression(condition)?, message.to_string()));
            }
            "if" => lines.push(Line::If(expression(rest)?, below()?, Vec::new())),
            "else" => {
                let otherwise = match rest.strip_prefix("if ") {
                    Some(condition) => vec![Line::If(expression(condition)?, below()?, Vec::new())],
                    None => below()?,
                };
                attach(lines.last_mut(), otherwise).ok_or("`else` without `if`")?;
            }
            "for" => {
                let (name, range) = pair(" in ")?;
                let (from, to) = range.split_once("..").ok_or_else(|| format!("`{range}` is not a range"))?;
                lines.push(Line::For(name.to_string(), expression(from)?, expression(to)?, below()?));
            }
            _ => lines.push(match key(word, rest)? {
                Some(key) => key,
                None => tensors(&node.text)?,
            }),
        }
    }
    Ok(lines)
}

/// Gives `otherwise` to the last `if` of a chain.
#[expect(clippy::needless_pass_by_value, reason = "it is moved into the chain")]
fn attach(line: Option<&mut Line>, otherwise: Vec<Line>) -> Option<()> {
    match line {
        Some(Line::If(.., slot)) if slot.is_empty() => *slot = otherwise,
        Some(Line::If(.., slot)) => return attach(slot.last_mut(), otherwise),
        _ => return None,
    }
    Some(())
}

/// The lines of `NAME(arguments)`.
#[expect(clippy::items_after_statements, reason = "it is of this function alone")]
fn used(call: &str, groups: &Groups) -> Result<Vec<Line>, String> {
    let (name, arguments) = call.split_once('(').unwrap_or((call, ")"));
    let group = groups.get(name).ok_or_else(|| format!("no group `{name}`"))?;
    let arguments = split(arguments.strip_suffix(')').unwrap_or(arguments));
    fn fill(node: &Node, arguments: &[&str]) -> Node {
        let mut text = node.text.clone();
        for number in 1..=9_usize {
            let place = format!("${number}");
            if text.contains(&place) {
                text = text.replace(&place, arguments.get(number.saturating_sub(1)).copied().unwrap_or("0"));
            }
        }
        Node { text, below: node.below.iter().map(|node| fill(node, arguments)).collect() }
    }
    let lines: Vec<Node> = group.iter().map(|node| fill(node, &arguments)).collect();
    compile(&lines, groups)
}

/// What commas separate, those in brackets not counted.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => depth = depth.saturating_add(1),
            ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.extend(text.get(start..at));
                start = at.saturating_add(1);
            }
            _ => {}
        }
    }
    parts.extend(text.get(start..));
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// `TYPE[?][COUNT] KEY, KEY [-> NAME]`.
fn key(word: &str, rest: &str) -> Result<Option<Line>, String> {
    let (ty, after) = if let Some((choices, after)) = word.strip_prefix("one-of(").and_then(|w| w.split_once(')')) {
        (Ty::OneOf(choices.split('|').map(ToString::to_string).collect()), after)
    } else {
        let at = word.find(['?', '[']).unwrap_or(word.len());
        let (name, after) = word.split_at(at);
        let ty = match name {
            "u32" => Ty::U32,
            "i32" => Ty::I32,
            "u64" => Ty::U64,
            "f32" => Ty::F32,
            "bool" => Ty::Bool,
            "str" => Ty::Str,
            "count" => Ty::Count,
            _ => return Ok(None),
        };
        (ty, after)
    };
    let optional = after.starts_with('?');
    let many = match after.trim_start_matches('?') {
        "" => Many::One,
        "[]" => Many::Array,
        count => Many::Exactly(expression(count.trim_matches(['[', ']']))?),
    };
    let (keys, into) = match rest.split_once(" -> ") {
        Some((keys, into)) => (keys, Some(into.to_string())),
        None => (rest, None),
    };
    let keys = keys.split(", ").map(ToString::to_string).collect();
    Ok(Some(Line::Key { ty, many, optional, keys, into }))
}

/// `NAME[?], NAME[?] [SHAPE] [| FLAGS]`.
fn tensors(text: &str) -> Result<Line, String> {
    let not_one = || format!("`{text}` is not a tensor");
    let (names, rest) = text.split_once(" [").ok_or_else(not_one)?;
    // The shape ends at its last bracket: an index has its own.
    let (shape, flags) = match rest.split_once("] | ") {
        Some((shape, flags)) => (shape, Some(expression(flags)?)),
        None => (rest.strip_suffix(']').ok_or_else(not_one)?, None),
    };
    let name = |name: &str| (name.trim_end_matches('?').to_string(), name.ends_with('?'));
    let shape = split(shape).into_iter().map(expression).collect::<Result<_, _>>()?;
    Ok(Line::Tensors { names: names.split(", ").map(name).collect(), shape, flags })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names that lines give a value (`let` apart) and those that they read.
    fn names(lines: &[Line], given: &mut BTreeSet<String>, local: &mut BTreeSet<String>, read: &mut BTreeSet<String>) {
        for line in lines {
            let mut reads = |expr: &Expr| {
                read.extend(expr.names().into_iter().map(|part| match part {
                    Expr::Name(name) | Expr::At(name, _) => name.clone(),
                    other => panic!("{other:?} is not a name"),
                }));
            };
            match line {
                Line::Key { many, into, .. } => {
                    given.extend(into.clone());
                    if let Many::Exactly(count) = many {
                        reads(count);
                    }
                }
                Line::Let(name, expr) => {
                    reads(expr);
                    local.insert(name.clone());
                }
                Line::Set(name, index, expr) => {
                    index.iter().for_each(&mut reads);
                    reads(expr);
                    given.insert(name.clone());
                }
                Line::Fill(name, expr) => {
                    reads(expr);
                    given.insert(name.clone());
                }
                Line::Copy(_, to) => {
                    given.insert(to.clone());
                }
                Line::Alias(a, b) => [a, b].into_iter().for_each(&mut reads),
                Line::Need(_) => {}
                Line::Assert(expr, _) | Line::Refuse(expr, _) => reads(expr),
                Line::If(condition, ..) => reads(condition),
                Line::For(name, from, to, _) => {
                    [from, to].into_iter().for_each(&mut reads);
                    local.insert(name.clone());
                }
                Line::Tensors { shape, flags, .. } => shape.iter().chain(flags).for_each(&mut reads),
            }
            match line {
                Line::If(_, a, b) => {
                    names(a, given, local, read);
                    names(b, given, local, read);
                }
                Line::For(.., lines) => names(lines, given, local, read),
                _ => {}
            }
        }
    }

    #[test]
    fn every_file_is_read_and_every_name_has_a_value() {
        let mut given: BTreeSet<String> =
            ["optional", "duplicated", "skip", "reshape", "load_mtp"].map(ToString::to_string).into();
        // Fields that some architectures alone set, and that are 0 elsewhere.
        let mut sections = Vec::new();
        for Arch { name: architecture, .. } in Arch::ALL {
            let rules = Rules::of(architecture).unwrap_or_else(|error| panic!("{architecture}: {error}"));
            given.extend(rules.defs.keys().cloned());
            for lines in [&rules.keys, &rules.tensors, &rules.graph] {
                let (mut local, mut read) = (BTreeSet::new(), BTreeSet::new());
                names(lines, &mut given, &mut local, &mut read);
                sections.push((architecture, local, read));
            }
        }
        for (architecture, local, read) in sections {
            let unknown: Vec<&String> = read.iter().filter(|n| !local.contains(*n) && !given.contains(*n)).collect();
            assert!(unknown.is_empty(), "{architecture}: {unknown:?}");
        }
    }
}
