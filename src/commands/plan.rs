//! `moeplan plan`: the launch that fits a budget.

use std::path::Path;

use crate::ask;
use crate::ask::check::add_companions;
use crate::bytes::Bytes;
use crate::checkup::Severity;
use crate::cli::Format;
use crate::cli::help::OWN;
use crate::commands::plan_options::PlanOptions;
use crate::commands::what_if::{self, Variant, WhatIfArgs};
use crate::commands::{Build, Outcome, Output, check, model_arg, working};
use crate::emit;
use crate::inspection::Warning;
use crate::machine::{Backend, Device, Machine};
use crate::memory::HOST;
use crate::model::Model;
use crate::number::counted;
use crate::plan::sweep::{MOST_POINTS, Plans, PlansRow, Sweep, Variable};
use crate::plan::want::{self, Want};
use crate::plan::{self, Plan, Request};
use crate::quantize::WhatIf;
use crate::report::page::Document as _;
use crate::run::build::REFERENCE;
use crate::run::{Dialect, RunConfig};
use crate::speed::prices::{device_rates, host_rates};
use crate::suggest::Refusal;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan plan --vram 24G model.gguf
  moeplan plan --vram 24G,12G -c 32768 --explain model.gguf -- -ub 2048 --swa-full
  moeplan plan --vram 16G --as Q4_K_M,Q5_K_M,Q6_K model-F16.gguf
  llama-server -m model.gguf $(moeplan plan --vram 24G --emit args model.gguf)")]
pub struct PlanArgs {
    /// A GGUF file, its folder, https://…, `hf:owner/repo[:QUANT]`, or a cached name.
    ///
    /// Several are compared in one table. Any shard identifies a split model. `moeplan list` shows the cached names.
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<std::path::PathBuf>,
    #[command(flatten)]
    pub options: PlanOptions,
    /// Plan for a range: `vram=6G..48G[:STEP]`, `ctx=8k..128k[:STEP]`, or both.
    ///
    /// `vram` varies the budget of the first device, `ctx` the context. With both, there is a plan for each pair.
    #[arg(long, help_heading = "Answer", value_name = "WHAT=A..B", conflicts_with = "emit")]
    pub sweep: Vec<Sweep>,
    /// Find the smallest machine for `tg=20`, `pp=500`, `turn=30s` or `ctx=128k`.
    ///
    /// Varies the budget, the card, main memory or memory speed, one at a time. If there are several targets (repeat the option, or
    /// separate them with commas), the machine must meet all of them.
    #[arg(long, help_heading = "Answer", value_name = "WHAT=N", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["emit", "sweep", "rules", "upgrade"])]
    pub want: Vec<Want>,
    /// Plan for MODELs that stay loaded together and share the machine.
    ///
    /// Minimises the slowest turn. `--emit llama-swap` and `--emit ini` print one file for all of them.
    #[arg(long, help_heading = "Answer", conflicts_with_all = ["sweep", "rules", "upgrade", "want", "recipes"])]
    pub together: bool,
    /// With --together: a weight for each model; minimises the largest weight × slowdown.
    ///
    /// The slowdown of a model is the time of its turn, divided by the time it would take with the whole machine.
    #[arg(long, help_heading = "Answer", value_name = "N,…", value_delimiter = ',', requires = "together")]
    #[arg(value_parser = weight, hide_short_help = true)]
    pub weights: Vec<f64>,
    /// Show what another card, a larger card, or faster or more main memory would gain.
    #[arg(long, help_heading = "Answer", conflicts_with_all = ["emit", "sweep", "rules"])]
    pub upgrade: bool,
    /// Print only the launch, in this form, ready to use.
    #[arg(long, help_heading = "Answer", value_enum, value_name = "FORM")]
    pub emit: Option<emit::Form>,
    /// The program that --emit writes for.
    #[arg(long = "for", help_heading = "Answer", value_enum, value_name = "PROGRAM", requires = "emit")]
    #[arg(default_value = "llama-server")]
    pub runner: emit::Runner,
    /// Plan for llama.cpp, or for its fork ik_llama.cpp, with that program's rules and flags.
    #[arg(long, help_heading = "Answer", value_enum, default_value_t, hide_short_help = true)]
    pub dialect: Dialect,
    #[command(flatten)]
    pub what_if: WhatIfArgs,
    /// More llama-server flags, which the plan keeps: `-- -fa on --swa-full`.
    #[arg(help_heading = OWN, last = true, value_name = "WORDS", hide_short_help = true)]
    pub words: Vec<String>,
}

/// A model, as it is shown, and what is asked about it.
pub struct Asked {
    model: Model,
    path: String,
    what_if: Option<WhatIf>,
    machine: Machine,
    request: Request,
}

impl Asked {
    /// The document, whole or brief, with what is to be said of the file and of this computer.
    pub fn plan(&self, is_brief: bool) -> anyhow::Result<Plan> {
        let Self { model, path, what_if, machine, request } = self;
        let planned = if is_brief { plan::brief } else { plan::plan };
        let mut plan = planned(model, path, machine, request)?;
        plan.warnings.splice(0..0, what_if.iter().flat_map(|what_if| what_if::warnings(what_if, path)));
        plan.model.what_if.clone_from(what_if);
        plan.warnings.extend(check::environment(false).into_keys().map(|name| Warning {
            code: "environment".into(),
            message: format!("{name} is set here, and llama.cpp reads it, but the plan does not count it"),
            hint: format!("unset it, or see what it changes with `moeplan check -- {}`", plan.command),
        }));
        Ok(plan)
    }
}

/// The file as it is, or as each of the recipes would make it.
pub fn asked(
    model: &Path,
    options: &PlanOptions,
    words: &[String],
    what_if: &WhatIfArgs,
    output: &Output,
) -> anyhow::Result<Vec<Asked>> {
    let gguf = model_arg::open(model, output)?;
    let (path, first) = (model_arg::shown(model, &gguf), what_if::first_file(model, &gguf));
    let source = model;
    let model = Model::from_gguf(gguf)?;
    let machine = options.described_machine()?;
    let ask = |mut model: Model, path: String, what_if: Option<WhatIf>| {
        let mut request = options.request(&model, &machine, words)?;
        add_companions(&mut model, &mut request.run, |path| model_arg::open(path, output))?;
        add_projector_of_hub(source, &mut model, &mut request.run, output);
        request.tensors |= output.format() == Format::Html;
        anyhow::Ok(Asked { model, path, what_if, machine: machine.clone(), request })
    };
    let recipes = what_if.recipes();
    if recipes.is_empty() {
        return Ok(vec![ask(model, path, None)?]);
    }
    let mut all = Vec::new();
    for recipe in recipes {
        match what_if.variant(&model, &path, &first, recipe) {
            Ok(Variant { model, path, what_if }) => all.push(ask(model, path, Some(what_if))?),
            Err(error) if recipes.len() == 1 => return Err(error),
            // One that llama-quantize refuses must not hide the others.
            Err(error) => output.say(&format!("note: {error:#}")),
        }
    }
    anyhow::ensure!(!all.is_empty(), "llama-quantize can make none of them from `{path}`");
    Ok(all)
}

/// Counts the projector that `-hf` fetches beside a model of the hub; one that cannot be read is left out of the command.
pub fn add_projector_of_hub(source: &Path, model: &mut Model, run: &mut RunConfig, output: &Output) {
    if !run.mmproj_auto || run.has_projector() || model.projector.is_some() {
        return;
    }
    match check::projector_of_hub(source, run, output) {
        Ok(None) => {}
        Ok(Some(projector)) => {
            let name = projector.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
            output
                .say(&format!("note: `-hf` also loads {name}, which the plan counts; `-- --no-mmproj` leaves it out"));
            model.projector = Some(projector.into());
        }
        Err(error) => {
            output.say(&format!("note: the repository's projector is left out (--no-mmproj): {error:#}"));
            run.mmproj_auto = false;
        }
    }
}

fn sweep(args: &PlanArgs, asked: Asked, output: &Output) -> anyhow::Result<Outcome> {
    let Asked { model, path, what_if, mut machine, request } = asked;
    if machine.devices.is_empty() && args.sweep.iter().any(|sweep| sweep.variable == Variable::Vram) {
        let backend = args.options.machine.described.backend.unwrap_or(Backend::Cuda);
        machine.devices = Device::of_budgets(backend, &[Bytes(0)])?;
    }
    args.options.machine.notes(&machine).iter().for_each(|note| output.say(note));
    let of = |variable| args.sweep.iter().find(|sweep| sweep.variable == variable).map(|sweep| sweep.values.as_slice());
    let axes = (of(Variable::Vram), of(Variable::Ctx));
    let varied = usize::from(axes.0.is_some()) + usize::from(axes.1.is_some());
    anyhow::ensure!(varied == args.sweep.len(), "give --sweep at most once for vram and once for ctx");
    let points = axes.0.map_or(1, <[u64]>::len) * axes.1.map_or(1, <[u64]>::len);
    anyhow::ensure!(
        points <= MOST_POINTS,
        "--sweep has {points} points, and {MOST_POINTS} is the limit: take larger steps"
    );
    let plans = || plan::sweep::sweep(&model, &path, &machine, &request, axes);
    let mut document = working(output, "planning for each budget and context", plans)?;
    document.model.what_if = what_if;
    output.show(&document)?;
    Ok(if document.points.iter().any(|point| point.fits) { Outcome::Yes } else { Outcome::No })
}

/// The least of each thing that gives what is wanted.
fn wanted(args: &PlanArgs, asked: Asked, output: &Output) -> anyhow::Result<Outcome> {
    let Asked { model, path, what_if, machine, request } = asked;
    args.options.machine.notes(&machine).iter().for_each(|note| output.say(note));
    let least = || want::want(&model, &path, &machine, &request, (&args.want, &kind_of_ram(args)));
    let mut document = working(output, "planning for other machines", least)?;
    document.model.what_if = what_if;
    output.show(&document)?;
    Ok(if document.is_reachable() { Outcome::Yes } else { Outcome::No })
}

/// What `--ram SIZE` is followed by.
fn kind_of_ram(args: &PlanArgs) -> String {
    args.options.machine.described.ram.map(|ram| ram.kind()).unwrap_or_default()
}

/// A weight as it is typed.
fn weight(text: &str) -> Result<f64, String> {
    let weight = text.parse().ok().filter(|weight: &f64| weight.is_finite() && *weight > 0.0);
    weight.ok_or_else(|| "write a number above 0, for example 2".to_string())
}

/// Plans for models that stay loaded together.
fn together(args: &PlanArgs, all: Vec<Asked>, output: &Output) -> anyhow::Result<Outcome> {
    let (models, weights) = (all.len(), args.weights.len());
    anyhow::ensure!(models > 1, "--together needs two MODELs or more");
    anyhow::ensure!(
        weights == 0 || weights == models,
        "--weights has {} for {models} models",
        counted(weights as u64, "number")
    );
    let of_one = |run: &RunConfig| match (&run.mmproj, &run.draft_model) {
        (Some(_), _) => Some("--mmproj"),
        (None, Some(_)) => Some("--model-draft"),
        (None, None) => None,
    };
    if let Some(flag) = all.iter().find_map(|asked| of_one(&asked.request.run)) {
        let hint = "plan them together without it, then that model with what it gets (column `ask with`) and its file after `--`";
        return Err(Refusal::new(format!("--together: `{flag}` is a file of one model"), hint).into());
    }
    let machine = args.options.described_machine()?;
    args.options.machine.notes(&machine).iter().for_each(|note| output.say(note));
    let all: Vec<_> = all.into_iter().map(|asked| (asked.model, asked.path, asked.request)).collect();
    let shared = || ask::together::together(&all, &machine, &args.weights, &kind_of_ram(args));
    let document = working(output, "planning for each share of the machine", shared)?;
    match args.emit {
        None => output.show(&document)?,
        Some(form) => {
            let plans: Vec<_> =
                all.iter().map(|(model, ..)| model).zip(document.members.iter().map(|of| &of.plan)).collect();
            output.answer(&emit::together(&plans, form)?.0)?;
            let first = document.members.first();
            if let Some(left) = first.and_then(|member| emit::left_out(form, &member.plan.args)) {
                output.say(&format!("note: {left}"));
            }
            if form == emit::Form::Ini {
                output.say(&format!("note: start it with {}", document.router));
            }
        }
    }
    Ok(if document.fits { Outcome::Yes } else { Outcome::No })
}

/// A table of plans of several files, or of what several recipes would make.
fn compare(args: &PlanArgs, all: Vec<Asked>, output: &Output) -> anyhow::Result<Outcome> {
    let is_alone = args.emit.is_none() && args.sweep.is_empty() && args.want.is_empty() && !args.upgrade;
    if !is_alone {
        let hint = match args.emit {
            Some(emit::Form::Ini | emit::Form::LlamaSwap) if args.what_if.recipes().is_empty() => {
                "--together plans for models that stay loaded together, and --emit then prints one file for all of them"
            }
            _ => "run it once for each model or recipe",
        };
        let message =
            format!("--emit, --sweep, --want and --upgrade take one MODEL or one recipe, and there are {}", all.len());
        return Err(Refusal::new(message, hint).into());
    }
    let planned = |(at, Asked { model, path, what_if, machine, request })| {
        let mut row = PlansRow::of(&model, &path, &machine, &request, at)?;
        if what_if.is_some() {
            row.point.label = format!("{path} (predicted)");
        }
        row.model.what_if = what_if;
        anyhow::Ok(row)
    };
    let each = || (0..).zip(all).map(planned).collect::<anyhow::Result<_>>();
    let rows = working(output, "planning for each model", each)?;
    let machine = args.options.described_machine()?;
    args.options.machine.notes(&machine).iter().for_each(|note| output.say(note));
    let document = Plans { schema: "moeplan/plans/1".into(), machine, rows };
    output.show(&document)?;
    Ok(if document.rows.iter().any(|row| row.point.fits) { Outcome::Yes } else { Outcome::No })
}

/// Refuses what is asked of an answer that --emit leaves out: it prints the command in its form and nothing else.
fn only_emitted(args: &PlanArgs, form: emit::Form, output: &Output) -> Result<(), Refusal> {
    let emit = format!("--emit {}", form.name());
    let twice = |beside: &str| format!("run it twice, once with {emit} and once with {beside}");
    let (beside, hint) = match output.format() {
        // It is JSON anyhow.
        Format::Json if args.runner == emit::Runner::Embedded => return Ok(()),
        Format::Json => (
            "--json",
            format!("leave {emit} out: the document has the arguments in `args` and the command in `command`"),
        ),
        Format::Markdown => ("--format markdown", twice("--format markdown")),
        Format::Html => ("--format html", twice("--format html")),
        Format::Text if args.options.planning.explain => ("--explain", twice("--explain")),
        Format::Text if args.options.planning.tensors => ("--tensors", twice("--tensors")),
        Format::Text => return Ok(()),
    };
    Err(Refusal::new(format!("{emit} prints only the command, so it cannot be combined with {beside}"), hint))
}

pub fn run(mut args: PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    let planning = &mut args.options.planning;
    planning.dialect = args.dialect;
    // ik_llama.cpp has no builds here, and one build is embedded.
    if args.dialect == Dialect::Ik || args.runner == emit::Runner::Embedded {
        planning.build.get_or_insert(REFERENCE);
    }
    let build = Build::of(planning.build);
    let outcome = answer(&args, output)?;
    build.say(output);
    Ok(outcome)
}

fn answer(args: &PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    args.emit.map_or(Ok(()), |form| only_emitted(args, form, output))?;
    let mut all = Vec::new();
    for model in &args.models {
        all.extend(asked(model, &args.options, &args.words, &args.what_if, output)?);
    }
    if args.together {
        return together(args, all, output);
    }
    let one = match all.pop() {
        Some(one) if all.is_empty() => one,
        last => return compare(args, all.into_iter().chain(last).collect(), output),
    };
    if !args.sweep.is_empty() {
        return sweep(args, one, output);
    }
    if !args.want.is_empty() {
        return wanted(args, one, output);
    }
    let described = &args.options.machine;
    if described.describes_devices() && args.emit.is_none() {
        described.notes(&one.machine).iter().for_each(|note| output.say(note));
    }
    let mut plan = working(output, "planning", || one.plan(args.emit.is_some()))?;
    let Asked { model, machine, request, .. } = one;
    if args.upgrade {
        let larger = || want::upgrades(&model, &machine, &request, &kind_of_ram(args));
        plan.upgrades = working(output, "planning for larger machines", larger)?;
        if plan.upgrades.is_empty() {
            output.say(
                "note: no upgrade is known: this computer is not sold with more memory, and its graphics are built in",
            );
        }
    }
    match (args.emit, output.format()) {
        (Some(form), _) => {
            let wish = emit::Wish { form, runner: args.runner, turn: args.options.planning.turn() };
            let emitted = emit::render(&model, &plan, wish)?;
            output.answer(&emitted.text)?;
            emitted.notes.iter().for_each(|note| output.say(&format!("note: {note}")));
            if let Some(what_if) = &plan.model.what_if {
                let path = &plan.model.path;
                output.say(&format!("note: {path} does not exist yet; this command makes it: {}", what_if.command));
            }
            let of_machine = ["device-not-used", "server-not-used"];
            for warning in plan.warnings.iter().filter(|warning| of_machine.contains(&&*warning.code)) {
                output.say(&format!("note: {}", warning.message));
            }
            for lint in &plan.check.lints {
                let severity = match lint.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                    Severity::Info => continue,
                };
                output.say(&format!("{severity}: {}", lint.message));
            }
            for (device, over) in &plan.check.shortfall {
                output.say(&format!("warning: {device} is {over} over its budget"));
            }
        }
        (None, Format::Html) => {
            let near = ask::near(&model, &plan, &request).map(|near| near.pages()).unwrap_or_default();
            output.pages(&plan.pages().into_iter().chain(near).collect::<Vec<_>>().into())?;
        }
        (None, _) => output.show(&plan)?,
    }
    if output.format() != Format::Json {
        guessed(&plan).or_else(|| slots(&plan)).iter().for_each(|note| output.say(note));
    }
    Ok(check::outcome(&plan.check))
}

/// The slots that a plan's copies are predicted for, where nobody said or measured them.
fn slots(plan: &Plan) -> Option<String> {
    let run = &plan.check.run;
    let copies = plan.placement.routed_expert_bytes_on_host > Bytes(0) && run.op_offload && run.n_ubatch >= 32;
    let is_unknown = |device: &&Device| {
        !device.integrated && device.rates.is_none() && !matches!(device.backend, Backend::Rpc | Backend::Metal)
    };
    let device = plan.machine.devices.iter().find(is_unknown).filter(|_| copies)?;
    let rate = device_rates(device).pinned;
    Some(format!(
        "note: prompts are predicted for a PCIe slot that copies {rate:.0} GB/s to {}; --pcie 4x8 describes one of generation 4 with 8 lanes",
        device.name
    ))
}

/// What is guessed of main memory that a plan reads experts from.
fn guessed(plan: &Plan) -> Option<String> {
    let rates = host_rates(&plan.machine.host);
    // Of the embedding's table alone a token reads one row.
    let is_split = plan.placement.routed_expert_bytes_on_host > Bytes(0)
        || plan.check.overrides.iter().any(|row| row.bytes > Bytes(0))
        || plan.machine.devices.is_empty()
        || (0..=plan.model.block_count.cast_signed()).contains(&plan.check.run.n_gpu_layers);
    let reads = is_split && plan.check.memory.get(HOST).is_some_and(|row| row.model > Bytes::mib(1024));
    (reads && rates.basis.starts_with("guess: host") && plan.machine.host.rates.is_none()).then(|| {
        format!(
            "note: the speed of main memory is a guess, {:.0} GB/s; --cpu NAME or --ram 64G@ddr4-3600x2 gives the real one",
            rates.memory
        )
    })
}
