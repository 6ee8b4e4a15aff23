// The page: a form whose fields are the program's flags, and under it what the library answers.
import { Hub, fileName, grouped, ofUrl, open, openBeside } from "./headers.js";
import { Library } from "./library.js";
import { Refusal } from "./moeplan.js";
import { FIRST, wish as wishOf } from "./question.js";

const by = (id) => document.getElementById(id);
const form = by("question");
const fields = form.elements;
const library = new Library();
const hub = new Hub(document.querySelector("meta[name=hub]").content, () => by("token").value.trim());

/** Between a launch and what takes longer, in milliseconds: a field that moves on does not wait for it. */
const PAUSE = 120;
/** Type mixes that are compared before a person chooses others. */
const USUAL = ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"];
const WORDS = {
  comfortable: "Fits",
  tight: "Fits tightly",
  paged: "Does not fit in main memory",
  short: "Does not fit",
  refused: "llama.cpp refuses this",
  without_parts: "Fits as far as it is counted",
  after_fit: "Fits after llama.cpp’s own fitting",
};

/** Models by the value of their option: `{ label, made, recipe, readers, shown, repo, quant, projector, summary }`. */
const models = new Map();
/** The repository that was listed last: `{ repo, quants, chosen }`. */
let listed = null;
let recipes = [];
/** Names of cards that use main memory. */
let integrated = [];
let tab = "plan";
/** What is shown: `{ document, html, name }`, and the questions that ask for it. */
let shown = null;
const saves = [by("save-json"), by("save-report")];
/** What was opened under which name. */
const opened = new Map();

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
const thousands = (n) => Math.round(n).toLocaleString("en");

// A narrow screen has the form under the launch, a wide one before it; keyboards and readers meet them as they are seen.
const narrow = matchMedia("(max-width: 56rem)");
const arrange = () => form.parentNode.insertBefore(form, narrow.matches ? by("more") : form.parentNode.firstChild);
narrow.addEventListener("change", arrange);
arrange();

// The question: fields, words, and the link that holds it.

const value = (name) => fields[name].value.trim();
const wish = (extra, projector) => wishOf((name) => (fields[name].disabled ? "" : value(name)), extra, projector);

/** The link of a question: the fields that are set, and what a tab has of its own. */
function link() {
  const set = [...new FormData(form)].filter(([, text]) => typeof text === "string" && text.trim() !== "");
  if (!current()?.made) set.splice(0, set.length, ...set.filter(([name]) => name !== "recipe"));
  if (tab !== "plan") set.push(["ask", tab]);
  if (tab === "check") set.push(["command", by("command").value]);
  return `#${new URLSearchParams(set)}`;
}

const current = () => models.get(value("model"));

// Models: the ones that can be made, files, addresses, the hub.

function addModel(key, model) {
  if (!models.has(key)) fields.model.append(element("option", { value: key, textContent: model.label }));
  models.set(key, model);
}

/** Opens a model, once, and gives the name under which it is open. */
async function ensure(key, recipe) {
  const model = models.get(key);
  const name = model.made ? `${key} ${recipe}` : key;
  if (!opened.has(name)) {
    if (model.made) {
      opened.set(name, await library.ask({ ask: "make", model: name, spec: key, recipe }));
    } else {
      if (!model.readers) throw new Refusal(`${model.label} is a file of the computer where this link was made`, "open yours with the button above");
      opened.set(name, await open(library, name, model.readers, model.shown, (moved) => say(`Reading the header: ${(moved / 2 ** 20).toFixed(1)} MiB`)));
    }
  }
  return name;
}

/** Opens the current model. */
async function openCurrent() {
  const key = value("model");
  const name = await ensure(key, value("recipe"));
  const { name: title, bytes, context_length: context, files } = opened.get(name);
  const parts = [title || fileName(key), `${gib(bytes)} GiB`, files > 1 ? `${files} files` : "", context ? `trained on ${thousands(context)} tokens` : ""];
  const { recipe } = current().made ?? {};
  // Only models with experts in a type of their own are published so.
  if (recipe === "F16" && value("recipe") !== recipe) parts.push("as llama-quantize makes it; published files keep the MXFP4 experts and differ");
  say(parts.filter(Boolean).join(" · "));
  return name;
}

const say = (text) => (by("reading").textContent = text);

async function readAddress(text) {
  const place = await library.ask({ ask: "locate", text });
  if (place.kind === "address") {
    addModel(place.address, { label: fileName(new URL(place.address).pathname) || place.address, readers: ofUrl(place.address) });
    return place.address;
  }
  const repo = place.address;
  say(`Reading the list of ${repo}`);
  const found = await hub.list(library, repo, place.which);
  listed = { repo, ...found };
  for (const quant of found.quants) {
    const key = `hf:${repo}/${quant.path}`;
    addModel(key, { label: `${repo}: ${quant.name}, ${gib(quant.bytes)} GiB`, repo, quant, shown: quant.model, readers: hub.readers(repo, quant) });
  }
  return `hf:${repo}/${found.chosen}`;
}

/** The model of a link or of the field, as an option of the list; it becomes the current one. */
async function choose(text) {
  fields.model.value = models.has(text) ? text : await readAddress(text);
  chooseRecipe();
}

function chooseRecipe(wanted) {
  const made = current()?.made;
  by("recipe-row").hidden = !made;
  if (!made) return;
  const names = recipes.includes(made.recipe) ? recipes : [made.recipe, ...recipes];
  fields.recipe.replaceChildren(...names.map((name) => element("option", { textContent: name })));
  fields.recipe.value = names.includes(wanted) ? wanted : made.recipe;
}

// Answers.

const TAGS = new Set("section h2 h3 p span dl div dt dd ul li table caption thead tbody tr th td figure figcaption b svg defs pattern rect line g title desc text circle polyline path details summary pre code".split(" "));

/** The sections of a report that the library wrote. It is markup of the program's own, its text escaped; what else would be in it is left out. */
function sections(html) {
  const report = new DOMParser().parseFromString(html.replace(/<(style|script)>[^]*?<\/\1>/g, ""), "text/html");
  for (const node of report.querySelectorAll("body *")) {
    if (node.closest("header")) continue;
    if (!TAGS.has(node.localName) && !["main"].includes(node.localName)) node.remove();
    for (const { name } of [...node.attributes]) if (name.startsWith("on") || name.endsWith("href") || name === "style") node.removeAttribute(name);
  }
  const text = (selector) => report.querySelector(selector)?.textContent ?? "";
  const title = [element("h2", { textContent: text("h1"), className: "title" }), element("p", { textContent: text(".subtitle"), className: "subtitle" })];
  const parts = [...report.querySelectorAll("svg.defs, main > section")].filter((node) => !node.parentElement.closest("section"));
  for (const pre of parts.flatMap((part) => [...part.querySelectorAll("pre")])) {
    pre.after(element("button", { type: "button", className: "copy", textContent: "Copy command" }));
  }
  return [...title, ...parts.map((part) => document.importNode(part, true))];
}

/** Shows a page: as far as its command above, the rest below. */
function render(nodes) {
  by("report").replaceChildren(...nodes);
  by("more").replaceChildren(...by("report").querySelectorAll("section > .copy ~ *"));
}

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy by hand";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

/** What is taken of each device and of main memory, of what there is. */
function taken(answer) {
  const rows = Object.entries(answer.memory ?? {}).filter(([, row]) => row.total !== undefined);
  const all = Object.fromEntries((answer.machine?.devices ?? []).map((device) => [device.name, device.total]));
  const one = ([name, row]) => {
    const most = all[name] ?? answer.budget?.[name];
    const where = name === "Host" ? "of main memory" : `on ${name}`;
    return most === undefined ? `${gib(row.total)} GiB ${where}` : `${gib(row.total)} of ${gib(most)} GiB ${where}`;
  };
  return rows.map(one).join(", ");
}

function headline(answer) {
  const parts = [`${WORDS[answer.verdict] ?? "Answered"}: ${taken(answer)}.`];
  if (answer.speed && answer.fits !== false) {
    const off = answer.speed.uncertainty_tg ?? answer.speed.uncertainty;
    parts.push(`About ${answer.speed.tg.toPrecision(2)} tokens/s (±${Math.round(off * 100)}%).`);
  }
  if (answer.run) parts.push(`Context ${thousands(answer.run.n_ctx)} tokens.`);
  return parts.join(" ");
}

function announce(text, verdict = "") {
  // What has been read out once is not read out again.
  if (by("headline").textContent !== text) by("headline").textContent = text;
  by("headline").className = verdict;
  // On a narrow screen, what stands below the form's fields.
  form.dataset.answer = text;
}

function busy(what, is) {
  by(what).setAttribute("aria-busy", String(is));
}

function show(answer, text, verdict) {
  shown = answer;
  announce(text, verdict);
  render(answer ? sections(answer.html) : []);
  busy("more", false);
  by("actions").hidden = !answer;
  for (const button of saves) button.disabled = false;
}

/** Shows a launch; what is known of the one before stays below, dimmed, and only what is whole can be saved. */
function showBrief(answer, text, verdict) {
  announce(text, verdict);
  by("report").replaceChildren(...sections(answer.html));
  if (shown?.name !== answer.name) by("more").replaceChildren();
  busy("more", true);
  by("actions").hidden = false;
  for (const button of saves) button.disabled = true;
}

function fail(error) {
  show(null, error.message, "bad");
  // A hint of the library names flags: here they are fields.
  const label = (name) => fields[name]?.labels?.[0]?.firstChild.textContent.trim();
  const hint = (error.hint ?? "").replace(/(?<![\w-])--?([a-z][a-z-]*)/g, (flag, name) => (label(name) ? `“${label(name)}”` : flag));
  if (hint) by("report").replaceChildren(element("p", { textContent: hint, className: "hint" }));
}

const verdicts = { comfortable: "good", tight: "caution", after_fit: "caution", without_parts: "caution" };

async function plan() {
  const model = await openCurrent();
  const projector = await projectorOf(current());
  const asked = async (ask, planning) => {
    const question = { model, wish: wish(planning, projector) };
    const answer = await library.ask({ ask, ...question });
    return { ...answer, name: "plan", report: { ask: "report", ...question }, is: JSON.parse(answer.document) };
  };
  const tell = (how, answer, more = "") => how(answer, headline(answer.is) + more, verdicts[answer.is.verdict] ?? "bad");
  // The launch first; then, where no field moves on meanwhile, how far its context could go, why it is so and what else there is.
  const brief = await asked("brief", {});
  if (again) return;
  tell(showBrief, brief);
  busy("answer", false);
  await new Promise((done) => setTimeout(done, PAUSE));
  let more = "";
  if (!again && brief.is.fits && value("c") !== "max") {
    const longest = await asked("brief", { ctx_size: "max" });
    if (longest.is.fits && longest.is.run.n_ctx > brief.is.run.n_ctx) more = ` Contexts up to ${thousands(longest.is.run.n_ctx)} fit.`;
  }
  if (again) return;
  by("headline").textContent += more;
  const whole = await asked("plan", { explain: true });
  if (!again) tell(show, whole, more);
}

/** The projector that `-hf` loads beside a model of the hub, opened; empty where it cannot be read, null where there is none. */
async function projectorOf(model) {
  if (!model?.repo || model.repo !== listed?.repo || !listed.projector || model.quant.path !== listed.chosen) return null;
  const key = `hf:${model.repo}/${listed.projector.path}`;
  try {
    if (!opened.has(key)) opened.set(key, await open(library, key, hub.readers(model.repo, { files: [listed.projector] })));
    return key;
  } catch (error) {
    say(`The repository’s projector is left out (--no-mmproj): ${error.message}`);
    return "";
  }
}

/** The option of the model that a command names, and the name; nothing of a placeholder or of what was opened here. */
function named(command) {
  const [, path] = /(?:^|\s)(?:-m|--model)[ =]["']?([^\s"']+\.gguf)/.exec(command) ?? [];
  const name = path?.split(/[/\\]/).at(-1).toLowerCase();
  if (!name || name === "model.gguf" || [...models.values()].some((model) => model.readers && fileName(model.label).toLowerCase() === name)) return {};
  const made = [...models].filter(([key, model]) => model.made && name.startsWith(key));
  return { name, key: made.sort(([one], [other]) => other.length - one.length)[0]?.[0] };
}

async function check() {
  const model = await openCurrent();
  const { name, key } = named(by("command").value);
  const other = name && key !== value("model") ? ` For ${current().label}, not for the ${name} of the command.` : "";
  const question = { ask: "check", model, text: by("command").value, wish: wish() };
  const tell = (how, answer, document) => how({ ...answer, name: "check" }, headline(document) + other, verdicts[document.verdict] ?? "bad");
  const answer = await library.ask(question);
  const document = JSON.parse(answer.document);
  if (again) return;
  if (document.checks) return show({ ...answer, name: "check" }, `${document.checks.length} commands`, "");
  // The answer first; then, where no field moves on meanwhile, how much faster a plan would be.
  tell(showBrief, answer, document);
  busy("answer", false);
  await new Promise((done) => setTimeout(done, PAUSE));
  if (again) return;
  const whole = await library.ask({ ...question, plan: true });
  if (!again) tell(show, whole, JSON.parse(whole.document));
}

/** What can be compared with the current model: its other type mixes, or what else was opened. */
function choices() {
  const model = current();
  if (model?.repo) return [];
  const mixes = model?.made ? recipes.map((recipe) => ({ key: value("model"), recipe, label: `${model.label} ${recipe}`, checked: USUAL.includes(recipe) || recipe === value("recipe") })) : [];
  const others = [...models].filter(([key, other]) => key !== value("model") && (other.made || other.readers));
  return [...mixes, ...(model?.made ? [] : [{ key: value("model"), label: model?.label, checked: true }]), ...others.map(([key, other]) => ({ key, recipe: other.made?.recipe, label: other.label, checked: !other.made && !model?.made }))];
}

function showChoices() {
  const all = choices();
  by("compare-hint").textContent = current()?.repo ? `Which models of ${current().repo} fit this machine. Their headers are read one by one.` : "Several models on this machine, in one table.";
  by("choices").replaceChildren(
    ...all.map(({ key, recipe, label, checked }) => {
      const box = element("input", { type: "checkbox", checked });
      Object.assign(box.dataset, { key, recipe: recipe ?? "" });
      return element("li", {}, element("label", {}, box, ` ${label}`));
    }),
  );
}

async function compare() {
  const model = current();
  if (model?.repo) return compareQuants(model.repo);
  const chosen = [...by("choices").querySelectorAll("input:checked")].map((box) => box.dataset);
  if (chosen.length === 0) return show(null, "Choose models to compare.");
  const names = [];
  for (const { key, recipe } of chosen) names.push(await ensure(key, recipe));
  const answer = await library.ask({ ask: "plans", models: names, wish: wish() });
  const fitting = JSON.parse(answer.document).rows.filter((row) => row.fits).length;
  show({ ...answer, name: "plans" }, `${fitting} of ${names.length} fit.`);
}

async function compareQuants(repo) {
  if (listed?.repo !== repo) await readAddress(repo);
  const rows = [];
  let whole = null;
  for (const [at, quant] of listed.quants.entries()) {
    if (again) return;
    by("headline").textContent = `Reading headers: ${at + 1} of ${listed.quants.length}`;
    const row = { path: quant.path, files: quant.files };
    const key = `hf:${repo}/${quant.path}`;
    try {
      if (!opened.has(key)) opened.set(key, await openBeside(library, key, hub.readers(repo, quant), quant.model, whole));
      whole ??= opened.get(key).start ?? null;
      row.model = key;
    } catch (error) {
      row.error = error.message;
    }
    rows.push(row);
  }
  const answer = await library.ask({ ask: "quants", repo, quants: rows, wish: wish() });
  const fitting = JSON.parse(answer.document).quants.filter((row) => row.fits?.auto.fits).length;
  show({ ...answer, name: "quants" }, `${fitting} of ${rows.length} fit.`);
}

// One question at a time: what changes meanwhile is asked after it.

let running = false;
let again = false;

async function ask() {
  again = true;
  if (running) return;
  running = true;
  const answer = by("answer");
  answer.dataset.state = "asked";
  while (again) {
    again = false;
    busy("answer", true);
    history.replaceState(null, "", link());
    try {
      await { plan, check, compare }[tab]();
    } catch (error) {
      if (!again) fail(error);
    }
  }
  busy("answer", false);
  answer.dataset.state = "answered";
  running = false;
}

function turnTo(name) {
  // The answer to one question does not stand under another.
  if (tab !== name) show(null, "");
  tab = name;
  for (const button of document.querySelectorAll("[role=tab]")) {
    const is = button.id === `tab-${name}`;
    button.setAttribute("aria-selected", String(is));
    button.tabIndex = is ? 0 : -1;
  }
  by("answer").setAttribute("aria-labelledby", `tab-${name}`);
  by("check-form").hidden = name !== "check";
  // A command says itself how it is launched.
  by("launch").hidden = name === "check";
  by("compare-form").hidden = name !== "compare";
  if (name === "compare") showChoices();
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

// What a person does.

form.addEventListener("submit", (event) => event.preventDefault());
/** The memory of cards is asked only where no card is named, and the type of main memory where it is not the card's own. */
function described() {
  fields.vram.disabled = value("gpu") !== "";
  fields.kind.disabled = integrated.some((name) => value("gpu").toLowerCase().includes(name));
}
fields.gpu.addEventListener("input", described);
form.addEventListener("change", (event) => {
  if (["address", "token", "files"].includes(event.target.id)) return;
  if (event.target.name === "model") chooseRecipe();
  if (tab === "compare" && ["model", "recipe"].includes(event.target.name)) showChoices();
  ask();
});
by("command").addEventListener("input", () => {
  const { key } = named(by("command").value);
  if (key && current()?.made && key !== value("model")) {
    fields.model.value = key;
    chooseRecipe();
  }
  ask();
});
by("choices").addEventListener("change", () => ask());

async function read(text) {
  if (!text.trim()) return;
  by("read").disabled = true;
  try {
    await choose(text.trim());
    if (tab === "compare") showChoices();
    await ask();
  } catch (error) {
    say("");
    fail(error);
  }
  by("read").disabled = false;
}
by("read").addEventListener("click", () => read(by("address").value));
by("address").addEventListener("keydown", (event) => {
  if (event.key === "Enter") read(event.target.value);
});
by("files").addEventListener("change", async (event) => {
  const found = grouped(event.target.files);
  for (const readers of found) {
    const key = `file:${readers[0].path}`;
    opened.delete(key);
    addModel(key, { label: readers[0].path, readers });
  }
  event.target.value = "";
  if (found.length === 0) return;
  fields.model.value = `file:${found[0][0].path}`;
  chooseRecipe();
  if (found.length > 1) {
    turnTo("compare");
  } else if (tab === "compare") {
    showChoices();
  }
  ask();
});

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [at, button] of tabs.entries()) {
  button.addEventListener("click", () => {
    turnTo(button.id.slice("tab-".length));
    ask();
  });
  button.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (step) tabs.at((at + step) % tabs.length).focus();
    if (step) tabs.at((at + step) % tabs.length).click();
  });
}

document.querySelector(".columns").addEventListener("click", ({ target }) => {
  if (target.matches("button.copy")) copy(target, target.previousElementSibling.textContent);
});
by("copy-link").addEventListener("click", ({ target }) => copy(target, location.href));
by("save-json").addEventListener("click", () => save(`moeplan-${shown.name}.json`, "application/json", shown.document));
by("save-report").addEventListener("click", async ({ target }) => {
  const [label, answer] = [target.textContent, shown];
  Object.assign(target, { disabled: true, textContent: "Saving…" });
  // What is shown is a report as well, without the table of other budgets.
  const { html } = answer.report ? await library.ask(answer.report).catch(() => answer) : answer;
  save(`moeplan-${answer.name}.html`, "text/html", html);
  Object.assign(target, { disabled: false, textContent: label });
});

// The first answer: of the link, or of what a first visit shows.

const { known, models: makeable, recipes: mixes } = await library.ask({ ask: "known" }).catch((error) => {
  fail(error);
  throw error;
});
recipes = mixes;
integrated = known.cards.filter((card) => card.integrated).map(({ name }) => name.toLowerCase());
for (const made of makeable) {
  const isTwice = makeable.some((other) => other !== made && other.model === made.model);
  addModel(made.spec, { label: isTwice ? `${made.model} (${made.spec})` : made.model, made });
}
by("cards").append(...known.cards.map(({ name }) => element("option", { value: name })));
by("processors").append(...known.processors.filter(({ name }) => !/[#*]/.test(name)).map(({ name }) => element("option", { value: name })));

const given = new URLSearchParams(location.hash.slice(1));
const question = given.size ? Object.fromEntries(given) : FIRST;
for (const [name, text] of Object.entries(question)) {
  if (fields[name] && name !== "model") fields[name].value = text;
}
if (question.command) by("command").value = question.command;
described();
if (question.model?.startsWith("file:")) addModel(question.model, { label: question.model.slice("file:".length) });
try {
  await choose(question.model ?? FIRST.model);
  chooseRecipe(question.recipe);
} catch (error) {
  fail(error);
}
turnTo(["check", "compare"].includes(question.ask) ? question.ask : "plan");
await ask();

// Without a network the page works on. What a first visit waits for goes first.
navigator.serviceWorker?.register("service.js").catch(() => {});
