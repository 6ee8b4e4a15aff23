// The library for Node and browsers, with the documents parsed.
import { Moeplan as Module, Refusal, Stopped } from "./moeplan.js";

export { Refusal, Stopped };

/** The first window of a header, and by how much the longest grow. */
const [FIRST, STEP] = [64 << 10, 4 << 20];

class Moeplan {
  #module;

  constructor(module) {
    this.#module = new Module(module);
  }

  async open(model, files, shown) {
    const starts = await Promise.all(files.map(({ read }) => read(0, FIRST)));
    for (;;) {
      const asked = files.map(({ path, bytes }, at) => ({ path, bytes, length: starts[at].length }));
      const { more, ...summary } = this.#module.ask({ ask: "open", model, shown, files: asked }, starts);
      if (more === undefined) return summary;
      const at = files.findIndex((file) => file.path === more);
      const have = starts[at].length;
      const rest = await files[at].read(have, Math.min(have * 4, have + STEP));
      if (rest.length === 0) throw new Refusal(`${more}: it ends inside the header`);
      const grown = new Uint8Array(have + rest.length);
      grown.set(starts[at]);
      grown.set(rest, have);
      starts[at] = grown;
    }
  }

  make(model, spec, recipe) {
    return this.#module.ask({ ask: "make", model, spec, recipe });
  }

  forget(model) {
    this.#module.ask({ ask: "forget", model });
  }

  known() {
    return this.#module.ask({ ask: "known" });
  }

  inspect(model) {
    const { document, html } = this.#module.ask({ ask: "inspect", model });
    return { inspection: JSON.parse(document), html };
  }

  plan(model, wish = {}) {
    const { document, html } = this.#module.ask({ ask: "plan", model, wish });
    return { plan: JSON.parse(document), html };
  }

  check(model, text, wish = {}, plan = false) {
    const { document, html } = this.#module.ask({ ask: "check", model, text, wish, plan });
    return { check: JSON.parse(document), html };
  }

  plans(models, wish = {}) {
    const { document, html } = this.#module.ask({ ask: "plans", models, wish });
    return { plans: JSON.parse(document), html };
  }
}

/** The library; `wasm` is its module or its bytes, where they are not beside this file. */
export async function load(wasm) {
  if (wasm instanceof WebAssembly.Module) return new Moeplan(wasm);
  const place = new URL("moeplan.wasm", import.meta.url);
  const read = async () => {
    if (place.protocol !== "file:") return (await fetch(place)).arrayBuffer();
    return (await import("node:fs/promises")).readFile(place);
  };
  return new Moeplan(await WebAssembly.compile(wasm ?? (await read())));
}
