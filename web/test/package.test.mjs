// The npm package as Node loads it, installed from its packed file into an empty folder.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { flags, ofDisk, program, unpack } from "./support.mjs";

test("the package opens, plans, checks and refuses", async (context) => {
  const folder = mkdtempSync(join(tmpdir(), "moeplan-npm-"));
  context.after(() => rmSync(folder, { recursive: true }));
  const npm = (...words) => execFileSync("npm", words, { cwd: folder, encoding: "utf8" });
  const [packed] = JSON.parse(npm("pack", "--json", new URL("../../target/npm", import.meta.url).pathname));
  for (const name of ["LICENSE-MIT", "LICENSE-APACHE", "README.md", "index.d.ts"]) assert.ok(packed.files.some((file) => file.path === name), name);
  npm("install", "--silent", "--offline", "--no-audit", "--no-fund", join(folder, packed.filename));
  const { Refusal, load } = await import(join(folder, "node_modules/moeplan/index.js"));
  const moeplan = await load();
  const file = join(unpack("real-models.tar.xz"), "GLM-4.7-Flash.q4_k.gguf");
  assert.equal((await moeplan.open("m", [ofDisk(file)])).files, 1);
  const wish = { machine: { vram: ["24G"], ram: "64G", cores: 8 } };
  assert.deepEqual(moeplan.plan("m", wish).plan, JSON.parse(await program(["plan", "--json", file, ...flags(wish)])));
  assert.equal(moeplan.inspect("m").inspection.schema, "moeplan/inspect/1");
  assert.equal(moeplan.check("m", "llama-server -m x.gguf -ngl 99", wish).check.schema, "moeplan/check/1");
  moeplan.make("other", "olmoe-1b-7b");
  assert.equal(moeplan.plans(["m", "other"], wish).plans.rows.length, 2);
  assert.ok(moeplan.known().known.cards.length > 50);
  assert.throws(() => moeplan.plan("m", { machine: { gpu: ["RTX 9999"] } }), (error) => error instanceof Refusal && error.message.includes("RTX 9999"));
});
