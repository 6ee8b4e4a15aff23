// What the tests share: the program, the library in Node, headers of files on disk.
import { execFile, execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { open } from "../headers.js";
import { Moeplan } from "../moeplan.js";

export const root = new URL("../..", import.meta.url).pathname;
export const site = join(root, "target/web");
export const folder = mkdtempSync(join(tmpdir(), "moeplan-web-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

// Without a llama-server, whose build the program would take.
const alone = { MOEPLAN_LLAMA_SERVER: "/nonexistent", HF_TOKEN: "" };
const environment = { ...process.env, ...alone, MOEPLAN_HOST: "unknown", XDG_CACHE_HOME: folder, XDG_CONFIG_HOME: folder };

/** What the program prints; an answer of no is an answer. */
export async function program(words, { cwd = folder, ...extra } = {}) {
  const options = { cwd, encoding: "utf8", maxBuffer: 1 << 30, env: { ...environment, ...extra } };
  try {
    return (await promisify(execFile)(process.env.MOEPLAN, words, options)).stdout;
  } catch (error) {
    if (error.code === 1 && error.stdout) return error.stdout;
    throw new Error(`moeplan ${words.join(" ")}: ${error.stderr || error.message}`);
  }
}

export function unpack(archive) {
  const place = mkdtempSync(join(folder, "headers-"));
  execFileSync("tar", ["-xJSf", join(root, "testdata", archive), "-C", place]);
  return place;
}

const module = new WebAssembly.Module(readFileSync(join(site, "moeplan.wasm")));

/** The library in this thread, with the face that a page sees. */
export class Here {
  #moeplan = new Moeplan(module);
  ask = async (question, parts) => this.#moeplan.ask(question, parts);

  /** Opens a file under its path. */
  file(path) {
    return open(this, path, [ofDisk(path)]);
  }
}

export function ofDisk(path) {
  return {
    path,
    bytes: statSync(path).size,
    read: async (from, to) => {
      const buffer = new Uint8Array(Math.max(0, Math.min(to, statSync(path).size) - from));
      const file = openSync(path, "r");
      const length = readSync(file, buffer, 0, buffer.length, from);
      closeSync(file);
      return buffer.subarray(0, length);
    },
  };
}

/** The flags that say what a question says. */
export function flags({ machine = {}, planning = {}, words = [] }) {
  const flag = (name) => `--${name.replaceAll("_", "-")}`;
  const of = ([name, value]) => {
    if (value === true) return [flag(name)];
    return Array.isArray(value) ? (value.length ? [flag(name), value.join(",")] : []) : [flag(name), String(value)];
  };
  const given = [...Object.entries(machine), ...Object.entries(planning)].flatMap(of);
  return words.length ? [...given, "--", ...words] : given;
}

/** That two documents are the same text; says where they first differ. */
export function same(found, expected, what = "") {
  if (found === expected) return;
  const [ours, theirs] = [found.split("\n"), expected.split("\n")];
  const at = ours.findIndex((line, at) => line !== theirs[at]);
  const near = (lines) => lines.slice(Math.max(0, at - 2), at + 3).join("\n");
  throw new Error(`${what}: line ${at + 1} of the module's\n${near(ours)}\nof the program's\n${near(theirs)}`);
}
