// The page in a real browser: every way in, what is shown and saved beside what the program writes, servers that misbehave.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import * as servers from "./servers.mjs";
import { folder, flags, program, root, same, site, unpack } from "./support.mjs";

const SWITCHES = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split(" ");
const MACHINE = { gpu: ["RTX 3090"], ram: "64G" };
const REPO = "owner/Model-GGUF";
const pictures = join(site, "../web-pictures");

let browser, hub, bad, host, real, split;

before(async () => {
  real = unpack("real-models.tar.xz");
  split = join(root, "testdata/headers");
  const made = async (recipe) => {
    const file = join(folder, `olmoe-${recipe}.gguf`);
    await program(["synth", "olmoe-1b-7b", "--recipe", recipe, "-o", file]);
    return file;
  };
  const q8 = await made("Q8_0");
  hub = await servers.hub({
    "gated/Model-GGUF": { "olmoe-Q8_0.gguf": q8 },
    [REPO]: {
      "README.md": join(root, "README.md"),
      "olmoe-Q8_0.gguf": q8,
      "olmoe-Q4_K_M.gguf": await made("Q4_K_M"),
      "sub dir/olmoe-Q6_K.gguf": await made("Q6_K"),
      "tiny/split-00001-of-00002.gguf": join(split, "split-00001-of-00002.gguf"),
      "tiny/split-00002-of-00002.gguf": join(split, "split-00002-of-00002.gguf"),
    },
  });
  bad = await servers.misbehaving(join(real, "GLM-4.7-Flash.q4_k.gguf"));
  host = await servers.pages(site, hub.origin);
  mkdirSync(pictures, { recursive: true });
  const executablePath = process.env.CHROMIUM;
  browser = await chromium.launch({ executablePath, args: SWITCHES });
});

after(async () => {
  await browser?.close();
  for (const server of [hub, bad, host]) server?.close();
});

/** A page that has answered; what it logs as an error fails the test. */
async function visit(question = {}, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 1000 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  await page.addInitScript(() => {
    globalThis.shifts = 0;
    // When the first launch is shown, in milliseconds of the page.
    const look = () => (document.querySelector("#report pre") ? (globalThis.first = performance.now()) : requestAnimationFrame(look));
    look();
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) globalThis.shifts += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(`${host.origin}/#${new URLSearchParams(question)}`);
  await answered(page);
  return page;
}

/** Waits until what was asked is answered. */
async function answered(page) {
  await page.waitForFunction(() => document.querySelector("#answer").dataset.state === "answered");
  return page.textContent("#headline");
}

async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  return readFileSync(await download.path(), "utf8");
}

const question = (more = {}) => ({ gpu: "RTX 3090", ram: "64G", ...more });

test("the first visit has an answer at once", async (t) => {
  const began = performance.now();
  const page = await visit();
  t.diagnostic(`the launch after ${await page.evaluate(() => Math.round(globalThis.first))} ms, everything after ${Math.round(performance.now() - began)} ms`);
  assert.match(await page.textContent("#headline"), /^Fits(?: \w+)?: .* GiB on CUDA0, .* GiB of main memory\. About \d+ tokens\/s \(±\d+%\)\. Context [\d,]+ tokens\./);
  assert.match(await page.textContent("#report pre"), /^llama-server -m gpt-oss-120b-/);
  assert.ok((await page.locator("#more figure").count()) > 1);
  assert.ok((await page.evaluate(() => globalThis.shifts)) < 0.1, `layout shifts: ${await page.evaluate(() => globalThis.shifts)}`);
  await page.screenshot({ path: join(pictures, "wide.png"), fullPage: true });
  assert.deepEqual(page.errors, []);
});

test("the first launch is shown while the library is loading", async () => {
  const page = await browser.newPage();
  let load;
  const wanted = new Promise((done) => (load = done));
  await page.route("**/moeplan.wasm", async (route) => {
    await wanted;
    await route.continue();
  });
  await page.goto(host.origin);
  const launch = await page.textContent("#report pre");
  load();
  await answered(page);
  assert.equal(await page.textContent("#report pre"), launch);
  await page.close();
});

test("a stranger's question, and each control is a plan of the program's", async (t) => {
  const page = await visit(question({ model: "glm-4.5-air" }));
  const file = join(folder, "glm-4.5-air-Q4_K_M.gguf");
  await program(["synth", "glm-4.5-air", "-o", file]);
  const native = async (wish) => (await program(["plan", "--json", file, ...flags(wish)])).replaceAll(file, "glm-4.5-air-Q4_K_M.gguf");
  const explain = { explain: true };
  same(await saved(page, "#save-json"), await native({ machine: MACHINE, planning: explain }));
  const times = [];
  for (const [name, value, wish] of [
    ["c", "64k", { planning: { ...explain, ctx_size: "64k" } }],
    ["ctk", "q8_0", { planning: { ...explain, ctx_size: "64k" }, words: ["-ctk", "q8_0", "-ctv", "q8_0"] }],
    ["ub", "1024", { planning: { ...explain, ctx_size: "64k" }, words: ["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "1024"] }],
  ]) {
    const began = performance.now();
    const shown = page.waitForFunction((before) => document.querySelector("#answer").getAttribute("aria-busy") === "false" && document.querySelector("#report pre") !== before, await page.$("#report pre"));
    await page.selectOption(`[name=${name}]`, value);
    await shown;
    times.push(Math.round(performance.now() - began));
    await answered(page);
    same(await saved(page, "#save-json"), await native({ machine: MACHINE, ...wish }), `${name} ${value}`);
  }
  t.diagnostic(`answers to changes after ${times.join(", ")} ms`);
  const html = await saved(page, "#save-report");
  assert.ok(html.startsWith("<!DOCTYPE html>") && html.includes("GLM-4.5-Air"));
  // A link holds the question.
  const again = await browser.newPage();
  await again.goto(page.url());
  assert.equal(await answered(again), await answered(page));
  assert.deepEqual(page.errors, []);
});

test("files of this computer, one and several shards", async () => {
  const page = await visit(question());
  const file = join(real, "GLM-4.7-Flash.q4_k.gguf");
  await page.setInputFiles("#files", file);
  await answered(page);
  const native = await program(["plan", "--json", file, ...flags({ machine: MACHINE, planning: { explain: true } })]);
  same(await saved(page, "#save-json"), native.replaceAll(file, "GLM-4.7-Flash.q4_k.gguf"));
  const shards = [2, 1].map((n) => join(split, `split-0000${n}-of-00002.gguf`));
  await page.setInputFiles("#files", shards[0]);
  assert.match(await answered(page), /shard 1 of 2 is missing/);
  await page.setInputFiles("#files", shards);
  await page.waitForFunction(() => document.querySelector("#reading").textContent.includes("2 files"));
  assert.deepEqual(page.errors, []);
});

test("an address, by ranges", async () => {
  const page = await visit(question());
  const url = `${bad.origin}/good/model.gguf`;
  await page.fill("#address", url);
  await page.press("#address", "Enter");
  await page.waitForFunction(() => document.querySelector("#report pre")?.textContent.includes("/good/model.gguf"));
  await answered(page);
  same(await saved(page, "#save-json"), await program(["plan", "--json", url, ...flags({ machine: MACHINE, planning: { explain: true } })]));
});

test("a repository of the hub, and which of its models fit", async (t) => {
  const page = await visit(question({ model: `hf:${REPO}:Q4_K_M` }));
  const environment = { HF_ENDPOINT: hub.origin };
  const native = await program(["plan", "--json", `hf:${REPO}:Q4_K_M`, ...flags({ machine: MACHINE, planning: { explain: true } })], environment);
  same(await saved(page, "#save-json"), native);
  const before = { ...hub.counts };
  await page.click("#tab-compare");
  await page.waitForFunction(() => /of 4 fit/.test(document.querySelector("#headline").textContent));
  await answered(page);
  const [bytes, requests] = [hub.counts.bytes - before.bytes, hub.counts.requests - before.requests];
  t.diagnostic(`${bytes} bytes of headers in ${requests} requests`);
  // The vocabulary, most of a header, moves once.
  assert.ok(bytes < 6e6);
  same(await saved(page, "#save-json"), await program(["inspect", "--json", `hf:${REPO}`, ...flags({ machine: MACHINE })], environment));
  assert.deepEqual(page.errors, []);
});

test("a gated repository is read with a token, which goes to the hub alone", async () => {
  const page = await visit(question());
  const answers = async (text) => {
    await page.fill("#address", "gated/Model-GGUF");
    await page.click("#read");
    await page.waitForFunction((text) => document.querySelector("#report").textContent.includes(text), text);
    return answered(page);
  };
  await answers("with a token of yours");
  await page.fill("#token", "hf_right");
  await answers("gated/Model-GGUF");
  assert.equal(hub.counts.tokens, 0);
  const kept = await page.evaluate(() => location.href + JSON.stringify({ ...localStorage, ...sessionStorage }));
  assert.ok(!kept.includes("hf_right"));
  assert.ok(!(await saved(page, "#save-json")).includes("hf_right"));
  assert.deepEqual(page.errors, []);
});

test("a command is checked", async () => {
  const page = await visit(question({ model: "qwen3-30b-a3b" }));
  await page.click("#tab-check");
  const text = "llama-server -m qwen3-30b-a3b-Q4_K_M.gguf -ngl 99 -ncmoe 10 -c 32768 -ot 'nothing=CPU'";
  await page.fill("#command", text);
  await page.waitForFunction(() => document.querySelector(".columns").textContent.includes("rule-matches-nothing"));
  await answered(page);
  const file = join(folder, "qwen3-30b-a3b-Q4_K_M.gguf");
  await program(["synth", "qwen3-30b-a3b", "-o", file]);
  const words = "llama-server -m qwen3-30b-a3b-Q4_K_M.gguf -ngl 99 -ncmoe 10 -c 32768 -ot nothing=CPU".split(" ");
  const native = await program(["check", "--json", ...flags({ machine: MACHINE }), "--", ...words]);
  same(await saved(page, "#save-json"), native);
  await page.fill("#command", "llama-server -m x.gguf --no-such-flag");
  await page.waitForFunction(() => document.querySelector("#answer").textContent.includes("no-such-flag"));
  assert.match(await answered(page), /For Qwen3-30B-A3B, not for the x\.gguf of the command\.$/);
  // A model of the list that the command names is the one it is checked for.
  await page.fill("#command", "llama-server -m models/gpt-oss-20b-mxfp4.gguf -ngl 99 -c 8192");
  await page.waitForFunction(() => document.querySelector("#report").textContent.includes("gpt-oss-20b"));
  assert.equal(await page.inputValue("#model"), "gpt-oss-20b");
  assert.ok(await page.isDisabled("[name=vram]"), "a card is named");
  assert.deepEqual(page.errors, []);
});

test("several models are one table", async () => {
  const page = await visit(question({ model: "qwen3-30b-a3b", ask: "compare" }));
  assert.match(await answered(page), /^\d of 5 fit\.$/);
  assert.equal((await page.locator("#report tbody tr").count()), 5);
  await page.screenshot({ path: join(pictures, "compare.png"), fullPage: true });
});

test("servers that misbehave are told apart", async () => {
  const page = await visit(question());
  for (const [path, expected] of [
    ["closed/m.gguf", "CORS"],
    ["page/m.gguf", "answers with a web page"],
    ["gone/m.gguf", "404 (no such file or repository)"],
    ["busy/m.gguf", "503 (the server’s own error)".replace("’", "'")],
    ["cut/m.gguf", "the connection ended after 100 bytes"],
    ["other/m.gguf", "answers with another range"],
    ["text/m.gguf", "not a GGUF file"],
  ]) {
    await page.fill("#address", `${bad.origin}/${path}`);
    await page.click("#read");
    await page.waitForFunction((text) => document.querySelector("#answer").textContent.includes(text), expected, { timeout: 20_000 });
  }
  await page.fill("#address", `${bad.origin}/whole/m.gguf`);
  await page.click("#read");
  await page.waitForFunction(() => document.querySelector("#report pre")?.textContent.includes("/whole/m.gguf"));
  await page.fill("#address", "nobody/nothing");
  await page.click("#read");
  await page.waitForFunction(() => document.querySelector("#answer").textContent.includes("private, gated or does not exist"));
  assert.deepEqual(page.errors, []);
});

test("hostile files never freeze the page, and what they say is text", async () => {
  const page = await visit(question());
  const corpus = ["fuzz/corpus/header", "testdata/headers"];
  const files = execFileSync("find", corpus.map((at) => join(root, at)).concat("-type", "f"), { encoding: "utf8" }).trim().split("\n");
  for (const file of files) {
    await page.setInputFiles("#files", file);
    await answered(page);
  }
  await page.selectOption("#model", "gpt-oss-20b");
  await page.waitForFunction(() => document.querySelector("#report pre")?.textContent.includes("gpt-oss-20b"));
  assert.equal(await page.locator(":is(#report, #more) :is(script, iframe, img, a)").count(), 0);
  assert.deepEqual(page.errors, []);
});

test("a library that stops is started again", async () => {
  // What a service worker fetches cannot be replaced here.
  const page = await visit(question({ model: "olmoe-1b-7b" }), { serviceWorkers: "block" });
  await page.click("#tab-check");
  await page.evaluate(() => (globalThis.stopping = true));
  await page.route("**/worker.js", async (route) => {
    const answer = await route.fetch();
    const stops = `const real = onmessage; onmessage = (event) => event.data.question.text === "stop" ? postMessage({ error: { kind: "Stopped", message: "attempt to add with overflow", hint: "" } }) : real(event);`;
    await route.fulfill({ response: answer, body: `${await answer.text()}\n${stops}` });
  });
  await page.reload();
  await answered(page);
  await page.fill("#command", "stop");
  await page.waitForFunction(() => document.querySelector("#headline").textContent.includes("attempt to add with overflow"));
  await page.click("#tab-plan");
  await page.waitForFunction(() => document.querySelector("#report pre")?.textContent.includes("olmoe"));
});

test("a launch is shown before what takes longer, and nothing is saved that is not whole", async () => {
  const page = await visit(question({ model: "glm-4.5-air", ram: "128G" }));
  await page.evaluate(() => {
    globalThis.seen = [];
    const look = () => {
      const busy = document.querySelector("#more").getAttribute("aria-busy");
      seen.push([busy, document.querySelector("#report pre")?.textContent.includes("-c 16384"), document.querySelector("#save-json").disabled, document.querySelectorAll("#more figure").length > 1]);
    };
    new MutationObserver(look).observe(document.querySelector("#more"), { attributes: true });
  });
  await page.selectOption("[name=c]", "16k");
  await answered(page);
  // The launch beside the older figures, then all of it.
  assert.deepEqual(await page.evaluate(() => globalThis.seen), [["true", true, true, true], ["false", true, false, true]]);
  assert.match(await page.textContent("#headline"), /Context 16,384 tokens\. Contexts up to [\d,]+ fit\.$/);
});

test("the page works without its server, and a newer one replaces it", async () => {
  const copy = join(folder, "copy");
  cpSync(site, copy, { recursive: true });
  let server = await servers.pages(copy, hub.origin);
  const { port } = new URL(server.origin);
  const context = await browser.newContext();
  const page = await context.newPage();
  const visited = async () => {
    await page.reload();
    return answered(page);
  };
  const kept = () => page.evaluate(() => caches.keys());
  await page.goto(`${server.origin}/#${new URLSearchParams(question({ model: "olmoe-1b-7b" }))}`);
  const before = await answered(page);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => 0));
  const [version, ...others] = await kept();
  assert.deepEqual(others, []);
  server.close();
  assert.equal(await visited(), before);
  await page.fill("[name=gpu]", "RTX 4090");
  await page.press("[name=gpu]", "Tab");
  await page.waitForFunction((before) => document.querySelector("#headline").textContent !== before, before);
  await answered(page);
  // What the server has now is shown at the first visit, and kept in place of the old.
  const changed = (file, from, to) => writeFileSync(join(copy, file), readFileSync(join(copy, file), "utf8").replace(from, to));
  changed("index.html", "Will this model fit my machine?</h1>", "Newer</h1>");
  changed("service.js", /"moeplan [0-9a-f]{16}"/, '"moeplan newer"');
  server = await servers.pages(copy, hub.origin, Number(port));
  await visited();
  assert.equal(await page.textContent("h1"), "Newer");
  for (let tries = 0; tries < 200 && (await kept()).includes(version); tries++) await page.waitForTimeout(50);
  assert.deepEqual(await kept(), ["moeplan newer"]);
  server.close();
  await visited();
  assert.equal(await page.textContent("h1"), "Newer");
});

test("the launch comes before the form on a narrow page, after it on a wide one", async () => {
  for (const [width, order] of [[390, ["tab-plan", "model"]], [1280, ["model", "tab-plan"]]]) {
    const page = await visit(question({ model: "olmoe-1b-7b" }), { viewport: { width, height: 844 } });
    const inTree = await page.evaluate(() => [...document.querySelectorAll("#tab-plan, #model")].map((one) => one.id));
    assert.deepEqual(inTree, order);
    const top = (selector) => page.evaluate((selector) => document.querySelector(selector).getBoundingClientRect().top, selector);
    if (width === 390) assert.ok((await top("#report pre")) < (await top("#model")) && (await top("#model")) < (await top("#more")));
    assert.ok((await page.evaluate(() => globalThis.shifts)) < 0.02, `layout shifts: ${await page.evaluate(() => globalThis.shifts)}`);
    assert.deepEqual(page.errors, []);
  }
});

test("a phone, in the dark, by keyboard", async () => {
  const page = await visit(question({ model: "glm-4.5-air" }), { viewport: { width: 390, height: 844 }, colorScheme: "dark", deviceScaleFactor: 2 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 390, `the page is ${width} px wide`);
  await page.screenshot({ path: join(pictures, "phone-dark.png"), fullPage: true });
  await page.focus("#tab-plan");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-check");
  assert.ok(await page.isVisible("#command"));
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll("input, select, textarea, button")].filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label"))).map((one) => one.outerHTML),
  );
  assert.deepEqual(unnamed, []);
});
