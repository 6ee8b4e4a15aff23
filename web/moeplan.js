// The library, for a page and for Node: one WebAssembly module that answers questions. docs/library.md lists the questions.

/** What the library refuses, in its own words; `hint` says what to try. */
export class Refusal extends Error {
  constructor(message, hint = "") {
    super(message);
    this.name = "Refusal";
    this.hint = hint;
  }
}

/** The library stopped: what it held is lost, and another one has to be started. */
export class Stopped extends Error {
  name = "Stopped";
}

export class Moeplan {
  #exports;

  /** @param {WebAssembly.Module} module of moeplan.wasm */
  constructor(module) {
    this.#exports = new WebAssembly.Instance(module).exports;
    this.#exports.start();
  }

  /** Asks, with bytes of headers beside the question; gives the answer, or throws `Refusal` or `Stopped`. */
  ask(question, parts = []) {
    const json = new TextEncoder().encode(JSON.stringify(question));
    let answer;
    try {
      let at = this.#exports.room(json.length + parts.reduce((sum, part) => sum + part.length, 0)) >>> 0;
      for (const part of [json, ...parts]) {
        new Uint8Array(this.#exports.memory.buffer, at, part.length).set(part);
        at += part.length;
      }
      const place = this.#exports.answer(json.length) >>> 0;
      answer = JSON.parse(this.#text(place, this.#exports.length()));
    } catch (trap) {
      throw new Stopped(this.#lastWords() || trap.message);
    }
    if (answer.error !== undefined) throw new Refusal(answer.error, answer.hint ?? "");
    return answer;
  }

  #text(place, length) {
    return new TextDecoder().decode(new Uint8Array(this.#exports.memory.buffer, place, length >>> 0));
  }

  #lastWords() {
    try {
      return this.#text(this.#exports.last_words() >>> 0, this.#exports.last_words_length());
    } catch {
      return "";
    }
  }
}
