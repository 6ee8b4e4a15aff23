//! What can be asked, and the answers: documents of the library, from headers that are kept by name.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use moeplan::arch::{Arch, Mix};
use moeplan::ask::check::{self, Asked, CheckRow, Checks, Models};
use moeplan::ask::machine::Described;
use moeplan::ask::options::{Planning, kept};
use moeplan::ask::quants::{self, Quants, Row};
use moeplan::ask::{self, known::Known};
use moeplan::bytes::Bytes;
use moeplan::checkup::Options;
use moeplan::gguf::source::header::Known as KnownHeader;
use moeplan::gguf::source::hub::{self, HubFile};
use moeplan::gguf::source::{Limits, Location, Which};
use moeplan::gguf::{self, Fault, Gguf, Start};
use moeplan::plan::sweep::{Plans, PlansRow};
use moeplan::plan::{self, Request};
use moeplan::report::html;
use moeplan::report::page::{Block, Document, Report};
use moeplan::run::sources::{self, Kind};
use moeplan::run::{ModelSource, ParsedCommand};
use moeplan::suggest::Refusal;
use moeplan::synth::{self, Wish, recipe, spec};
use moeplan::{Machine, Model};
use serde::{Deserialize, Serialize};

/// What a page asks. A `model` is the name under which a header was opened.
#[derive(Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
enum Question {
    /// Reads the header of a model, all its shards together, and keeps it.
    Open(Open),
    /// Makes the header of a known model, in a type mix or its usual one, and keeps it.
    Make {
        model: String,
        spec: String,
        recipe: Option<String>,
    },
    Forget {
        model: String,
    },
    /// The models that can be made, and the cards and processors that have names.
    Known,
    /// What words of a person's for a model mean: an address, a repository of the hub.
    Locate {
        text: String,
    },
    /// The models in a repository; the bytes are the pages of the hub's list.
    List {
        repo: String,
        pages: Vec<usize>,
        which: Option<String>,
    },
    /// Which range of a file has what differs from a header of `whole` bytes, given the file's start.
    Rest {
        whole: usize,
    },
    Inspect {
        model: String,
    },
    Plan {
        model: String,
        wish: Wishes,
    },
    /// The launch of a plan at once: its document without what llama.cpp's own fitting would choose, its page as far as the command.
    Brief {
        model: String,
        wish: Wishes,
    },
    /// The page of a plan, with sliders for other budgets and contexts.
    Report {
        model: String,
        wish: Wishes,
    },
    /// Several models on one machine.
    Plans {
        models: Vec<String>,
        wish: Wishes,
    },
    /// Which models of a repository fit.
    Quants {
        repo: String,
        quants: Vec<Listed>,
        wish: Wishes,
    },
    /// What commands would do; each is of `model` where its own is not open. With `plan`, of one command also what the planner makes of
    /// its model, which takes longer than the rest.
    Check {
        model: String,
        text: String,
        wish: Wishes,
        #[serde(default)]
        plan: bool,
    },
}

#[derive(Deserialize)]
struct Open {
    model: String,
    files: Vec<File>,
    /// What llama.cpp is told of it, where that is not its first file: `hf:owner/repo:QUANT`.
    shown: Option<String>,
    /// So many bytes before those of the files are a header that was read of another quantisation.
    #[serde(default)]
    whole: usize,
}

/// The machine and what is asked of the planner, in the words of the flags.
#[derive(Deserialize)]
struct Wishes {
    #[serde(default)]
    machine: Described,
    margin: Option<String>,
    #[serde(default)]
    planning: Planning,
    /// llama.cpp's own flags, which a plan keeps.
    #[serde(default)]
    words: Vec<String>,
    /// The header of the projector that llama.cpp loads beside a model of the hub.
    projector: Option<String>,
}

#[derive(Deserialize)]
struct File {
    path: String,
    /// The file's length, where it is known.
    bytes: Option<u64>,
    /// How many bytes of it there are beside the question.
    length: usize,
    /// After its start, how many bytes of the range that differs from a header that was read.
    #[serde(default)]
    rest: usize,
}

/// A model of a repository: the name under which its header is open, or why it is not.
#[derive(Deserialize)]
struct Listed {
    path: String,
    files: Vec<ListedFile>,
    model: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct ListedFile {
    path: String,
    bytes: u64,
}

/// What the page gets.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    /// A document as the program writes it, and its page.
    Document {
        document: String,
        html: String,
    },
    Model(Summary),
    /// More of this file is needed.
    More {
        more: String,
    },
    Known {
        known: Known,
        models: Vec<Makeable>,
        recipes: Vec<&'static str>,
    },
    Location {
        kind: &'static str,
        address: String,
        which: Option<String>,
    },
    List {
        quants: Vec<Row>,
        chosen: String,
        projector: Option<HubFile>,
    },
    Range {
        range: Option<(usize, usize)>,
    },
    Error {
        error: String,
        hint: Option<String>,
    },
    Done {},
}

#[derive(Serialize)]
struct Summary {
    name: String,
    path: String,
    bytes: Bytes,
    context_length: u32,
    files: usize,
    /// Bytes of the first file's header.
    header: u64,
}

/// A model that can be made, and the type mix that people run.
#[derive(Serialize)]
struct Makeable {
    spec: String,
    model: String,
    recipe: String,
}

/// The headers that are open.
#[derive(Default)]
pub struct State {
    models: BTreeMap<String, Opened>,
}

struct Opened {
    gguf: Gguf,
    /// The model of it, once one was asked about.
    model: OnceCell<Model>,
    shown: String,
}

impl State {
    pub fn answer(&mut self, question: &[u8], json: usize) -> Vec<u8> {
        let (json, bytes) = question.split_at_checked(json).unwrap_or_default();
        let answered = serde_json::from_slice(json).context("internal error").and_then(|asked| self.ask(asked, bytes));
        let answer = answered.unwrap_or_else(|error| {
            let hint = error.chain().find_map(|cause| ask::hint(cause).map(std::borrow::Cow::into_owned));
            Answer::Error { error: format!("{error:#}"), hint }
        });
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    fn ask(&mut self, question: Question, bytes: &[u8]) -> anyhow::Result<Answer> {
        match question {
            Question::Open(open) => self.open(open, bytes),
            Question::Make { model, spec, recipe } => self.make(model, &spec, recipe.as_deref()),
            Question::Forget { model } => {
                self.models.remove(&model);
                Ok(Answer::Done {})
            }
            Question::Known => known(),
            Question::Locate { text } => locate(&text),
            Question::List { repo, pages, which } => list(&repo, &pages, which, bytes),
            Question::Rest { whole } => {
                let (whole, start) = bytes.split_at_checked(whole).unwrap_or_default();
                Ok(Answer::Range { range: differs(whole).and_then(|known| known.wanted(start, SPARE)) })
            }
            Question::Inspect { model } => shown(&ask::inspect(self.gguf(&model)?.clone()).1),
            Question::Plan { model, wish } => self.plan(&model, &wish, false),
            Question::Brief { model, wish } => {
                let (model, path, machine, request) = self.asked(&model, &wish)?;
                let plan = plan::brief(&model, &path, &machine, &request)?;
                let mut pages = plan.pages();
                for page in &mut pages {
                    let command = page.blocks.iter().position(|(_, block)| matches!(block, Block::Command(..)));
                    page.blocks.truncate(command.map_or(0, |at| at + 1));
                }
                Ok(Answer::Document { document: text(&plan)?, html: html::report(&pages.into()) })
            }
            Question::Report { model, wish } => self.plan(&model, &wish, true),
            Question::Plans { models, wish } => self.plans(&models, &wish),
            Question::Quants { repo, quants, wish } => self.quants(&repo, quants, &wish),
            Question::Check { model, text, wish, plan } => self.check(&model, &text, &wish, plan),
        }
    }

    fn opened(&self, model: &str) -> anyhow::Result<&Opened> {
        self.models.get(model).with_context(|| format!("internal error: no header `{model}`"))
    }

    fn gguf(&self, model: &str) -> anyhow::Result<&Gguf> {
        Ok(&self.opened(model)?.gguf)
    }

    /// A model as it is asked about: with what llama.cpp is told of it, and the projector that is loaded beside it.
    fn asked(&self, model: &str, wish: &Wishes) -> anyhow::Result<(Model, String, Machine, Request)> {
        let Opened { gguf, model, shown } = self.opened(model)?;
        if model.get().is_none() {
            let _ = model.set(Model::from_gguf(gguf.clone())?);
        }
        let mut model = model.get().context("internal error: no model")?.clone();
        let machine = wish.machine.machine()?;
        let margin = wish.margin(&machine)?;
        let request = wish.planning.request(&model, &machine, &kept(&wish.words)?)?;
        let mut request = Request { margin, ..request };
        check::add_companions(&mut model, &mut request.run, |path| self.companion(path))?;
        if let Some(projector) =
            wish.projector.as_ref().filter(|_| request.run.mmproj_auto && !request.run.has_projector())
        {
            model.projector = Some(check::read_projector(self.gguf(projector)?.clone(), &request.run)?.into());
        }
        Ok((model, shown.clone(), machine, request))
    }

    /// A file of a command that is open here under its own name.
    fn named(&self, path: &Path) -> Option<&Gguf> {
        let name = |path: &Path| path.to_string_lossy().rsplit(['/', '\\']).next().map(str::to_string);
        let of = |gguf: &&Gguf| gguf.files.iter().any(|file| name(&file.path) == name(path));
        self.models.values().map(|opened| &opened.gguf).find(of)
    }

    fn companion(&self, path: &Path) -> anyhow::Result<Gguf> {
        let hint = "open it here as a model first; only its header is read";
        let missing = || Refusal::new(format!("`{}` is not open on this page", path.display()), hint);
        Ok(self.named(path).cloned().ok_or_else(missing)?)
    }

    fn open(&mut self, open: Open, bytes: &[u8]) -> anyhow::Result<Answer> {
        let Open { model, files, shown, whole } = open;
        let (whole, mut bytes) = bytes.split_at_checked(whole).unwrap_or_default();
        let known = differs(whole);
        let mut joined = Vec::new();
        for file in &files {
            let (start, rest) = bytes.split_at_checked(file.length).unwrap_or_default();
            let (end, rest) = rest.split_at_checked(file.rest).unwrap_or_default();
            bytes = rest;
            joined.push(match &known {
                Some(known) if file.rest > 0 => known.joined(start, end).context("the headers do not agree")?.into(),
                _ => std::borrow::Cow::Borrowed(start),
            });
        }
        let start = |(file, bytes)| {
            let File { path, bytes: file_bytes, .. }: &File = file;
            let bytes: &std::borrow::Cow<'_, [u8]> = bytes;
            Start { path, file_bytes: *file_bytes, bytes }
        };
        match gguf::of_bytes(&files.iter().zip(&joined).map(start).collect::<Vec<_>>()) {
            Ok(gguf) => Ok(self.keep(model, gguf, shown)),
            Err(error) if error.at.what == Fault::Ends => Ok(Answer::More { more: error.path.display().to_string() }),
            Err(error) => Err(error.into()),
        }
    }

    fn keep(&mut self, model: String, gguf: Gguf, shown: Option<String>) -> Answer {
        let path = gguf.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
        let (read, _) = Model::as_far_as_readable(gguf.clone());
        let plan::ModelSummary { name, path, bytes, context_length, .. } = plan::summary(&read, &shown.unwrap_or(path));
        let files = gguf.files.len();
        let header = gguf.files.first().map_or(0, |file| file.data_offset);
        self.models.insert(model, Opened { gguf, model: OnceCell::new(), shown: path.clone() });
        Answer::Model(Summary { name: name.unwrap_or_default(), path, bytes, context_length, files, header })
    }

    fn make(&mut self, model: String, spec: &str, recipe: Option<&str>) -> anyhow::Result<Answer> {
        let recipe = recipe.map(|name| recipe::named(name).ok_or_else(|| anyhow!("no type mix `{name}`")));
        let wish = Wish { recipe: recipe.transpose()?, ..Wish::default() };
        let made = synth::synthesize(&spec::named(spec)?, &wish)?;
        let file = made.files.first().context("no file")?;
        let (header, _, data) = file.header();
        let path = format!("{}-{}.gguf", made.spec.name, made.recipe.name);
        let file_bytes = Some(header.len() as u64 + data);
        let mut gguf = gguf::of_bytes(&[Start { path: &path, file_bytes, bytes: &header }])?;
        // It stands for the published file, of which only the header counts here.
        gguf.header.metadata.remove(synth::MARK);
        Ok(self.keep(model, gguf, None))
    }

    fn plan(&self, model: &str, wish: &Wishes, with_sliders: bool) -> anyhow::Result<Answer> {
        let (model, path, machine, mut request) = self.asked(model, wish)?;
        let lists_tensors = request.tensors;
        request.tensors = true;
        let mut plan = plan::plan(&model, &path, &machine, &request)?;
        let near = if with_sliders { ask::near(&model, &plan, &request) } else { None };
        let pages = plan.pages().into_iter().chain(near.iter().flat_map(Document::pages)).collect::<Vec<_>>();
        let html = html::report(&pages.into());
        if !lists_tensors {
            plan.check.tensors = None;
        }
        Ok(Answer::Document { document: text(&plan)?, html })
    }

    fn plans(&self, models: &[String], wish: &Wishes) -> anyhow::Result<Answer> {
        let mut rows = Vec::new();
        for (at, model) in (0..).zip(models) {
            let (model, path, machine, request) = self.asked(model, wish)?;
            rows.push(PlansRow::of(&model, &path, &machine, &request, at)?);
        }
        shown(&Plans { schema: "moeplan/plans/1".into(), machine: wish.machine.machine()?, rows })
    }

    fn quants(&self, repo: &str, listed: Vec<Listed>, wish: &Wishes) -> anyhow::Result<Answer> {
        let machine = wish.machine.machine()?;
        let (margin, target, name) = (wish.margin(&machine)?, wish.planning.target(), format!("hf:{repo}"));
        let file = |file: ListedFile| HubFile { path: file.path, bytes: Bytes(file.bytes), oid: None };
        let mut judged = Vec::new();
        let mut quants = Vec::new();
        for Listed { path, files, model, error } in listed {
            let mut found = hub::quants(repo, files.into_iter().map(file).collect())?;
            quants.push(found.pop().with_context(|| format!("`{path}` is not a model"))?);
            judged.push(match (model, error) {
                (_, Some(error)) => Some(Err(error)),
                (Some(model), None) => {
                    let fits = quants::judge(self.gguf(&model)?.clone(), &name, &machine, margin, target);
                    Some(fits.map_err(|error| format!("{:#}", anyhow::Error::from(error))))
                }
                (None, None) => None,
            });
        }
        let rows = quants.iter().zip(judged).map(|(quant, judged)| Row::of(repo, &quants, quant, judged)).collect();
        shown(&Quants::new(repo, Some(machine), rows))
    }

    fn check(&self, model: &str, text: &str, wish: &Wishes, plan: bool) -> anyhow::Result<Answer> {
        let held = sources::of_text(Kind::of("", text), text, &|_| None)?;
        let machine = wish.machine.machine()?;
        let margin = wish.margin.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let turn = Some(wish.planning.turn());
        let build = wish.planning.build.map(|build| ["--build".to_string(), build.to_string()]);
        let words: Vec<String> = wish.machine.words().into_iter().chain(build.into_iter().flatten()).collect();
        let asked = Asked {
            plan: (plan && held.len() == 1).then_some(words.as_slice()),
            machine: &machine,
            environment: &BTreeMap::new(),
            target: wish.planning.target(),
            options: Options { margin, tensors: true, turn, ..Options::default() },
        };
        let look = |held| check::check(held, asked, &OfPage { state: self, model });
        let mut checks = Vec::new();
        if let [only] = held.as_slice() {
            let mut checked = look(only)?;
            let html = html::report(&checked.report());
            checked.checkup.tensors = None;
            return Ok(Answer::Document { document: self::text(&checked)?, html });
        }
        for held in &held {
            checks.push(match look(held) {
                Ok(checked) => CheckRow::Checked(Box::new(checked)),
                Err(error) => {
                    let (name, command) = (held.name.clone(), sources::shown(held));
                    CheckRow::Failed { name, command, error: format!("{error:#}") }
                }
            });
        }
        let mut checks = Checks::of(checks, &held, &machine, margin);
        let html = html::report(&checks.report());
        for row in &mut checks.checks {
            if let CheckRow::Checked(checked) = row {
                checked.checkup.tensors = None;
            }
        }
        Ok(Answer::Document { document: self::text(&checks)?, html })
    }
}

impl Wishes {
    fn margin(&self, machine: &Machine) -> anyhow::Result<Bytes> {
        Ok(self.margin.as_deref().map(str::parse).transpose()?.unwrap_or_else(|| machine.margin()))
    }
}

/// Of the commands of a page: a file that is open under its own name, or the model that the page shows.
struct OfPage<'a> {
    state: &'a State,
    model: &'a str,
}

impl Models for OfPage<'_> {
    type Error = anyhow::Error;

    fn model(&self, command: &mut ParsedCommand) -> anyhow::Result<(Model, String)> {
        let name = match &command.model {
            Some(ModelSource::Path(path)) => path.display().to_string(),
            Some(ModelSource::HuggingFace { repo, file }) => check::hugging_face(repo, file.as_deref()),
            Some(ModelSource::Url(url)) => url.clone(),
            Some(ModelSource::Docker(repo)) => repo.clone(),
            None => return Err(anyhow!("the command names no model: add `-m FILE`")),
        };
        let gguf = self.state.named(Path::new(&name)).map_or_else(|| self.state.gguf(self.model), Ok)?;
        Ok((check::load(gguf.clone(), &command.run)?, name))
    }

    fn companion(&self, path: &Path) -> anyhow::Result<Gguf> {
        self.state.companion(path)
    }
}

/// Bytes to spare for a header whose keys are a little longer.
const SPARE: usize = 16 << 10;

fn differs(whole: &[u8]) -> Option<KnownHeader> {
    KnownHeader::new(whole.to_vec(), Limits::default().tail)
}

fn text(document: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

fn shown(document: &(impl Serialize + Document)) -> anyhow::Result<Answer> {
    let report: Report = document.report();
    Ok(Answer::Document { document: text(document)?, html: html::report(&report) })
}

fn known() -> anyhow::Result<Answer> {
    let makeable = |name: String| {
        let spec = spec::named(&name)?;
        // Those of 16 bits are what others are made of, but where the experts are of fewer anyhow.
        let keeps = Arch::named(&spec.architecture).is_some_and(|arch| arch.mix == Mix::GptOss);
        let recipe = if spec.recipe.ends_with("F16") && !keeps { "Q4_K_M".to_string() } else { spec.recipe };
        Ok(Makeable { spec: name, model: spec.model, recipe })
    };
    let models = spec::names().into_iter().map(makeable).collect::<Result<_, Refusal>>()?;
    Ok(Answer::Known { known: Known::of(""), models, recipes: recipe::recipes().map(|recipe| recipe.name).collect() })
}

fn locate(text: &str) -> anyhow::Result<Answer> {
    let text = text.trim();
    let plain = text.split(':').next().unwrap_or_default();
    let location =
        if hub::is_repository(plain) { Location::parse(&format!("hf:{text}")) } else { Location::parse(text) };
    Ok(match location? {
        Location::Address(url) => Answer::Location { kind: "address", address: url.to_string(), which: None },
        Location::Hub { repo, which } => {
            let which = match which {
                Which::Default => None,
                Which::Quant(quant) => Some(quant),
                Which::File(file) => Some(format!("/{file}")),
            };
            Answer::Location { kind: "hub", address: repo, which }
        }
        Location::Here(text) => {
            let hint = "write https://host/model.gguf, or owner/repo of the Hugging Face hub, or choose a file";
            return Err(Refusal::new(format!("`{text}` is not an address"), hint).into());
        }
    })
}

fn list(repo: &str, pages: &[usize], which: Option<String>, mut bytes: &[u8]) -> anyhow::Result<Answer> {
    let mut files = Vec::new();
    for length in pages {
        let (page, rest) = bytes.split_at_checked(*length).unwrap_or_default();
        files.extend(hub::listed_files(page)?);
        bytes = rest;
    }
    let quants = hub::quants(repo, files.clone())?;
    let which = match which {
        None => Which::Default,
        Some(text) => match text.strip_prefix('/') {
            Some(file) => Which::File(file.to_string()),
            None => Which::Quant(text),
        },
    };
    let chosen = hub::choose(repo, &quants, &which)?.path.clone();
    let projector = hub::projector_beside(&files, &chosen).cloned();
    let rows = quants.iter().map(|quant| Row::of(repo, &quants, quant, None)).collect();
    Ok(Answer::List { quants: rows, chosen, projector })
}
