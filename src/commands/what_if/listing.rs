//! `inspect --as`: what llama-quantize could make of a model, by recipe.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{Variant, WhatIfArgs, first_file};
use crate::bytes::Bytes;
use crate::commands::{Output, model_arg};
use crate::gguf::GgmlType;
use crate::inspection::{Inspection, TypeCount};
use crate::model::{Model, Tensor};
use crate::number::counted;
use crate::quantize::{Imatrix, WhatIf};
use crate::report::page::{self as report, Block, Page, dotted};
use crate::report::table::{Table, row};
use crate::run::build::REFERENCE;

/// The most commands that are shown to people; the JSON has them all.
const COMMANDS: usize = 6;

/// The `moeplan/what-if/1` document: what could be made of a model.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Document {
    schema: &'static str,
    source: Source,
    /// A row a recipe, in the order asked.
    recipes: Vec<Row>,
    /// What llama-quantize would refuse, where others were asked too.
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Refused {
    recipe: &'static str,
    error: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Source {
    path: String,
    name: Option<String>,
    architecture: String,
    file_type: Option<Cow<'static, str>>,
    bytes: Bytes,
    bits_per_weight: f64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    path: String,
    what_if: WhatIf,
    bytes: Bytes,
    bits_per_weight: f64,
    routed_expert_bytes: Bytes,
    bytes_by_type: BTreeMap<Cow<'static, str>, Bytes>,
    tensors_by_type: BTreeMap<Cow<'static, str>, TypeCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TensorRow {
    name: String,
    from: GgmlType,
    #[serde(rename = "type")]
    ty: GgmlType,
    bytes: Bytes,
}

/// `inspect MODEL --as …`: sizes and types by recipe.
pub fn inspect(args: &WhatIfArgs, model: &Path, with_tensors: bool, output: &Output) -> anyhow::Result<()> {
    let gguf = model_arg::open(model, output)?;
    let (shown, first) = (model_arg::shown(model, &gguf), first_file(model, &gguf));
    let model = Model::from_gguf(gguf)?;
    let types: BTreeMap<&str, GgmlType> =
        model.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.ty)).collect();
    let tensor = |tensor: &Tensor| TensorRow {
        name: tensor.name.clone(),
        from: types.get(tensor.name.as_str()).copied().unwrap_or(tensor.ty),
        ty: tensor.ty,
        bytes: tensor.bytes,
    };
    let (mut recipes, mut refused) = (Vec::new(), Vec::new());
    for recipe in args.recipes() {
        match args.variant(&model, &shown, &first, recipe) {
            Ok(Variant { model, path, what_if }) => {
                let made = Inspection::new(&model, &[], None);
                recipes.push(Row {
                    path,
                    what_if,
                    bytes: made.bytes.total,
                    bits_per_weight: made.bits_per_weight,
                    routed_expert_bytes: made.experts.bytes,
                    bytes_by_type: made.bytes.by_type,
                    tensors_by_type: made.tensors_by_type,
                    tensors: with_tensors.then(|| model.tensors.iter().map(tensor).collect()),
                });
            }
            Err(error) if args.recipes().len() == 1 => return Err(error),
            Err(error) => refused.push(Refused { recipe: recipe.name, error: error.root_cause().to_string() }),
        }
    }
    let own = Inspection::new(&model, &[], None);
    let source = Source {
        path: shown,
        name: own.name,
        architecture: own.architecture,
        file_type: own.file_type,
        bytes: own.bytes.total,
        bits_per_weight: own.bits_per_weight,
    };
    output.show(&Document { schema: "moeplan/what-if/1", source, recipes, refused })
}

impl report::Document for Document {
    fn pages(&self) -> Vec<Page> {
        let source = &self.source;
        let about = dotted([
            source.architecture.as_str(),
            source.file_type.as_deref().unwrap_or("mixed"),
            &source.bytes.to_string(),
            &format!("{:.2} bits per weight", source.bits_per_weight),
        ]);
        let mut page = Page::new("What if", source.name.as_deref().unwrap_or(&source.path), about);
        page.push(Block::Prose(format!("Predicted: what llama-quantize b{REFERENCE} would make of it")));
        let mut table = Table::of("recipe|>size|>bits|>experts|types|");
        for of in &self.recipes {
            let (experts, bits) = (of.routed_expert_bytes, format!("{:.2}", of.bits_per_weight));
            let experts = if experts == Bytes(0) { "none".to_string() } else { experts.to_string() };
            let remarks = [
                (of.what_if.imatrix == Imatrix::Needed).then(|| "needs --imatrix".to_string()),
                (of.what_if.requantized > 0).then(|| "from a quant".to_string()),
                (of.what_if.fallbacks > 0).then(|| counted(of.what_if.fallbacks, "fallback")),
            ];
            let remarks = remarks.into_iter().flatten().collect::<Vec<_>>().join(", ");
            table.row(row![of.what_if.recipe, of.bytes, bits, experts, types(of), remarks]);
        }
        for Refused { recipe, error } in &self.refused {
            table.row([recipe, "", "", "", "", error]);
        }
        page.push(Block::Table(String::new(), table));
        page.push(self.recipes.iter().filter_map(|made| {
            let rows = made.tensors.as_ref()?.iter().map(|of| row![of.name, of.from, of.ty, of.bytes.0]);
            let table = Table::rows_of("tensor|is|becomes|>bytes", rows);
            Some(Block::Table(made.what_if.recipe.to_string(), table))
        }));
        let commands = self.recipes.iter().filter(|_| self.recipes.len() <= COMMANDS);
        page.push(commands.map(|row| Block::Command(String::new(), row.what_if.command.clone())));
        vec![page]
    }
}

/// Tensors by type, the most bytes first.
fn types(row: &Row) -> String {
    let mut types: Vec<_> = row.bytes_by_type.iter().collect();
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let count = |ty: &str| row.tensors_by_type.get(ty).map_or(0, |count| count.tensors);
    types.iter().map(|(ty, _)| format!("{} {ty}", count(ty))).collect::<Vec<_>>().join(", ")
}
