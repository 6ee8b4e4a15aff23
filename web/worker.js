// The library in a thread of its own: a question in, an answer out. A trap ends it, and the page starts another worker.
import { Moeplan } from "./moeplan.js";

const load = async () => {
  const wasm = await fetch(new URL("moeplan.wasm", import.meta.url));
  if (!wasm.ok) throw new Error(`moeplan.wasm: the server answers ${wasm.status}`);
  return new Moeplan(await WebAssembly.compile(await wasm.arrayBuffer()));
};
const library = load();

onmessage = async ({ data: { id, question, parts } }) => {
  try {
    postMessage({ id, answer: (await library).ask(question, parts) });
  } catch (error) {
    postMessage({ id, error: { kind: error.name, message: error.message, hint: error.hint ?? "" } });
  }
};
