// Files and texts that are made to break readers: each gets an answer, soon, and the next question is answered too.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Moeplan, Refusal, Stopped } from "../moeplan.js";
import { Here, ofDisk, root, site } from "./support.mjs";
import { open } from "../headers.js";

const of = (folder) => readdirSync(join(root, folder)).map((name) => join(root, folder, name));
const wish = { machine: { vram: ["24G"], ram: "64G", cores: 8 } };

/** An answer, or a refusal that says something. */
async function answered(asked, what) {
  try {
    return await asked;
  } catch (error) {
    assert.ok(error instanceof Refusal && error.message.length > 0, `${what}: ${error.name}: ${error.message}`);
    return null;
  }
}

test("headers of the fuzz corpus and of testdata", async (t) => {
  const here = new Here();
  let models = 0;
  const files = [...of("fuzz/corpus/header"), ...of("fuzz/corpus/split"), ...of("fuzz/corpus/model"), ...of("testdata/headers")];
  for (const file of files) {
    const before = performance.now();
    const opened = await answered(open(here, "hostile", [ofDisk(file)]), file);
    if (opened) {
      models += 1;
      await answered(here.ask({ ask: "inspect", model: "hostile" }, []), file);
      await answered(here.ask({ ask: "plan", model: "hostile", wish }, []), file);
    }
    assert.ok(performance.now() - before < 60_000, `${file} freezes the page`);
  }
  t.diagnostic(`${files.length} files, ${models} of them headers`);
});

test("commands and lists of the fuzz corpus", async () => {
  const here = new Here();
  await here.ask({ ask: "make", model: "m", spec: "olmoe-1b-7b", recipe: "Q8_0" }, []);
  for (const file of of("fuzz/corpus/command")) {
    await answered(here.ask({ ask: "check", model: "m", text: readFileSync(file, "utf8"), wish }, []), file);
  }
  for (const file of of("fuzz/corpus/manifest")) {
    const page = readFileSync(file);
    await answered(here.ask({ ask: "list", repo: "o/r", pages: [page.length] }, [page]), file);
  }
});

test("a trap says what happened, and another library goes on", async () => {
  const module = new WebAssembly.Module(readFileSync(join(site, "moeplan.wasm")));
  const moeplan = new Moeplan(module);
  const huge = { length: 2 ** 32 - 2 ** 16 };
  assert.throws(() => moeplan.ask({ ask: "known" }, [huge]), (error) => error instanceof Stopped && error.message.includes("capacity overflow"));
  assert.ok(new Moeplan(module).ask({ ask: "known" }).models.length > 0);
});
