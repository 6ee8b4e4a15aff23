// The worker as the page sees it: one question at a time, and a new worker after one that stopped or takes too long.
import { Refusal } from "./moeplan.js";

/** No answer takes so long, in milliseconds: a worker that needs more is ended. */
const LIMIT = 30_000;

export class Library {
  #worker;
  #waiting;
  #last = Promise.resolve();
  /** What has been opened, to be opened again by another worker. */
  #opened = new Map();
  /** Answers that were made with the page, by their questions: the library itself takes a while to load. */
  #kept;

  constructor() {
    this.#start();
    const kept = fetch(new URL("first.json", import.meta.url)).then((file) => file.json());
    this.#kept = kept.then((pairs) => new Map(pairs.map(([question, answer]) => [JSON.stringify(question), answer])), () => new Map());
  }

  #start() {
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#waiting?.(data);
    this.#worker.onerror = (event) =>
      this.#waiting?.({ error: { kind: "Error", message: event.message || "the library cannot be loaded", hint: "" } });
  }

  /** Questions are answered in order. */
  async ask(question, parts = []) {
    const kept = (await this.#kept).get(JSON.stringify(question));
    // A model has to be open in the worker as well.
    if (kept && question.ask !== "make") return kept;
    const turn = this.#last.then(() => this.#ask(question, parts));
    this.#last = turn.catch(() => {});
    return kept ?? turn;
  }

  async #ask(question, parts) {
    const { answer, error } = await this.#send(question, parts);
    if (!error) {
      const { ask, model } = question;
      if ((ask === "open" || ask === "make") && answer.path !== undefined) this.#opened.set(model, [question, parts]);
      if (ask === "forget") this.#opened.delete(model);
      return answer;
    }
    if (error.kind === "Refusal") throw new Refusal(error.message, error.hint);
    this.#worker.terminate();
    this.#start();
    for (const [model, [question, parts]] of this.#opened) {
      const again = await this.#send(question, parts);
      if (again.error) this.#opened.delete(model);
    }
    throw new Refusal(`moeplan stopped at this: ${error.message}`, "please report it with the model's name; everything else works on");
  }

  #send(question, parts) {
    return new Promise((resolve) => {
      const done = (data) => {
        clearTimeout(timer);
        this.#waiting = undefined;
        resolve(data);
      };
      const late = () => done({ error: { kind: "Error", message: `no answer in ${LIMIT / 1000} seconds`, hint: "" } });
      const timer = setTimeout(late, LIMIT);
      this.#waiting = done;
      this.#worker.postMessage({ question, parts });
    });
  }
}
