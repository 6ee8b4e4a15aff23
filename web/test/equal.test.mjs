// Documents of the library in WebAssembly, byte by byte beside those that the program writes.
import assert from "node:assert/strict";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Here, flags, folder, program, root, same, unpack } from "./support.mjs";

const quoted = (words) => words.map((word) => `'${word}'`).join(" ");
const machine = { device: ["CUDA0=81079M"], ram: "512G", cores: 16 };

for (const [truth, archive] of [["models", "truth-models"], ["real-models", "real-models"], ["architectures", "architectures"]]) {
  test(`checks of every command of ${truth}.jsonl`, async (t) => {
    const place = unpack(`${archive}.tar.xz`);
    const rows = readFileSync(join(root, `testdata/truth/${truth}.jsonl`), "utf8").trim().split("\n").map((line) => JSON.parse(line));
    const here = new Here();
    for (const model of new Set(rows.map((row) => row.model))) await here.file(join(place, `${model}.gguf`));
    const line = ({ tool, model, flags }) => quoted([tool, "-m", join(place, `${model}.gguf`), ...flags.split(/\s+/).filter(Boolean)]);
    const text = rows.map(line).join("\n") + "\n";
    const file = join(folder, `${truth}.sh`);
    writeFileSync(file, text);
    const native = await program(["check", "--json", ...flags({ machine }), file]);
    const { document } = await here.ask({ ask: "check", model: "", text, wish: { machine } }, []);
    assert.equal(JSON.parse(native).checks.filter((check) => check.memory).length, rows.length);
    same(document, native, truth);
    t.diagnostic(`${rows.length} commands`);
  });
}

const MACHINES = [
  { gpu: ["RTX 3090"], ram: "64G@ddr5-6000x2", cpu: "Ryzen 7950X" },
  { vram: ["24G", "12G"], ram: "128G", cores: 12 },
  { gpu: ["RTX 3060", "7900 XTX"], ram: "96G", cores: 8 },
  { vram: ["7.5G"], backend: "vulkan", ram: "32G", cores: 6 },
  { ram: "256G@ddr4-3200x8", cores: 32 },
];
const LAUNCHES = [
  {},
  { planning: { ctx_size: "max", explain: true } },
  { words: ["-c", "32768", "-np", "2", "-ctk", "q8_0", "-ctv", "q8_0"] },
  { planning: { objective: "tg", ctx_size: "16k" }, words: ["-ub", "1024"] },
];

test("plans and inspections", async (t) => {
  const place = unpack("truth-models.tar.xz");
  const real = unpack("real-models.tar.xz");
  const files = [place, real].flatMap((at) => readdirSync(at).filter((name) => name.endsWith(".gguf")).map((name) => join(at, name)));
  const here = new Here();
  let plans = 0;
  for (const [at, file] of files.entries()) {
    await here.file(file);
    same((await here.ask({ ask: "inspect", model: file }, [])).document, await program(["inspect", "--json", file]), file);
    for (const more of [0, 1, 2]) {
      const [machine, launch] = [MACHINES[(at + more) % MACHINES.length], LAUNCHES[(at + 2 * more) % LAUNCHES.length]];
      const wish = { machine, ...launch };
      const { document } = await here.ask({ ask: "plan", model: file, wish }, []);
      same(document, await program(["plan", "--json", file, ...flags(wish)]), `${file} ${flags(wish).join(" ")}`);
      // A launch is the plan's, without what takes longer.
      const { fit_choice: _fit, ladder: _ladder, ...rest } = JSON.parse(document);
      assert.deepEqual(JSON.parse((await here.ask({ ask: "brief", model: file, wish }, [])).document), rest);
      plans += 1;
    }
  }
  assert.ok(plans >= 30);
  const wish = { machine: MACHINES[0] };
  const several = await here.ask({ ask: "plans", models: files.slice(0, 4), wish }, []);
  same(several.document, await program(["plan", "--json", ...files.slice(0, 4), ...flags(wish)]));
  t.diagnostic(`${plans} plans, ${files.length} inspections, 1 table`);
});

test("the saved report is the program's page", async () => {
  const place = unpack("real-models.tar.xz");
  const file = join(place, "GLM-4.7-Flash.q4_k.gguf");
  const here = new Here();
  await here.file(file);
  const wish = { machine: MACHINES[0], planning: { explain: true } };
  const { html } = await here.ask({ ask: "report", model: file, wish }, []);
  same(html, await program(["plan", "--format", "html", file, ...flags(wish)]));
});

test("models that are made are those of synth", async () => {
  const here = new Here();
  const { models } = await here.ask({ ask: "known" }, []);
  assert.ok(models.length > 15);
  for (const { spec, recipe } of models) {
    const { bytes } = await here.ask({ ask: "make", model: spec, spec, recipe }, []);
    assert.ok(bytes > 1e9, spec);
  }
  // What tells a made header from the published one is not in what a page shows.
  const { document } = await here.ask({ ask: "plan", model: "gpt-oss-20b", wish: { machine: MACHINES[0] } }, []);
  const file = join(folder, "gpt-oss-20b-F16.gguf");
  await program(["synth", "gpt-oss-20b", "-o", file]);
  const native = await program(["plan", "--json", file, ...flags({ machine: MACHINES[0] })]);
  same(document, native.replaceAll(file, "gpt-oss-20b-F16.gguf"));
});
