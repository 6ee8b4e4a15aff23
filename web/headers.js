// Where headers come from: files of this computer, addresses, the Hugging Face hub. Only the bytes of headers are read.
import { Refusal } from "./moeplan.js";

const FIRST = 64 << 10;
/** A window grows four times as large until it has so many bytes, then by so many at a time. */
const STEP = 4 << 20;
/** The longest header. */
const MOST = 128 << 20;
/** The longest list of a repository's files, in pages. */
const PAGES = 50;
const WAIT = 30_000;

const fileName = (path) => path.split(/[/\\]/).pop();
const shard = (name) => /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(name);

/** A file of this computer. */
export const ofFile = (file) => ({
  path: file.name,
  bytes: file.size,
  read: async (from, to) => new Uint8Array(await file.slice(from, to).arrayBuffer()),
});

/** Files that a person chose, those of a split model together; a list of readers a model. */
export function grouped(files) {
  const models = new Map();
  for (const file of files) {
    const [, prefix, , count] = shard(file.name) ?? [];
    const key = prefix === undefined ? file.name : `${prefix} of ${count}`;
    models.set(key, [...(models.get(key) ?? []), ofFile(file)]);
  }
  return [...models.values()].map((readers) => readers.sort((a, b) => a.path.localeCompare(b.path)));
}

/** The answer to a request, or why there is none. */
async function request(url, headers) {
  let answer;
  try {
    answer = await fetch(url, { headers, redirect: "follow", referrerPolicy: "no-referrer", credentials: "omit", signal: AbortSignal.timeout(WAIT) });
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal(`${url}: no answer in time`, "check the network and try again");
    throw new Refusal(
      `${url}: the browser could not read it`,
      "the network or the server failed, or the server does not let pages of other sites read its files (CORS); the program can: moeplan plan URL",
    );
  }
  if (answer.ok) return answer;
  const [meaning, hint] = {
    401: [" (not signed in)", "the repository is private, gated or does not exist; one of the Hugging Face hub is read with a token of yours"],
    403: [" (not allowed)", "the repository is private, gated or does not exist; one of the Hugging Face hub is read with a token of yours"],
    404: [" (no such file or repository)", "check owner, name and file"],
    429: [" (too many requests)", "wait a while"],
  }[answer.status] ?? [answer.status >= 500 ? " (the server's own error)" : "", "try again later"];
  throw new Refusal(`${url}: the server answers ${answer.status}${meaning}`, hint);
}

/** The first `most` bytes of a body, which is then left. */
async function body(url, answer, most) {
  const reader = answer.body.getReader();
  const parts = [];
  let have = 0;
  try {
    while (have < most) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      have += value.length;
    }
  } catch {
    throw new Refusal(`${url}: the connection ended after ${have} bytes`, "check the network and try again");
  }
  reader.cancel().catch(() => {});
  return new Uint8Array(await new Blob(parts).slice(0, most).arrayBuffer());
}

/** A file at an address, read by ranges; `bytes` is its length where that is known, `headers` what else is sent. */
export function ofAddress(url, path = url, bytes = null, headers = () => ({})) {
  let tag;
  const reader = { path, bytes, url };
  reader.read = async (from, to) => {
    const last = (reader.bytes === null ? to : Math.min(to, reader.bytes)) - 1;
    const answer = await request(url, { ...headers(), Range: `bytes=${from}-${last}` });
    if (answer.headers.get("content-type")?.startsWith("text/html")) {
      throw new Refusal(`${url}: the server answers with a web page instead of a GGUF file`, "on Hugging Face, the file's own address has /resolve/ instead of /blob/");
    }
    const found = answer.headers.get("etag");
    if (tag && found && found !== tag) throw new Refusal(`${url}: the file changed while its header was read`, "an upload may be under way: try again later");
    tag ??= found;
    // A server without ranges sends the file from its start.
    if (answer.status !== 206) return (await body(url, answer, to)).subarray(from);
    const range = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(answer.headers.get("content-range") ?? "");
    if (range && Number(range[1]) !== from) {
      throw new Refusal(`${url}: asked for byte ${from}, the server answers with another range`, "a proxy or this server changes answers: try another address, or download the file");
    }
    if (range && range[3] !== "*") reader.bytes ??= Number(range[3]);
    return body(url, answer, last + 1 - from);
  };
  return reader;
}

/** The readers of a model at an address: of a shard, of all. */
export function ofUrl(url) {
  const address = new URL(url);
  const folders = address.pathname.split("/");
  const [, prefix, , count] = shard(decodeURIComponent(folders.pop())) ?? [];
  if (prefix === undefined) return [ofAddress(url)];
  return Array.from({ length: Math.min(Number(count), 1000) }, (_, at) => {
    const name = `${prefix}-${String(at + 1).padStart(5, "0")}-of-${count}.gguf`;
    const place = new URL(address);
    place.pathname = [...folders, encodeURIComponent(name)].join("/");
    return ofAddress(place.href);
  });
}

/** Reads a header, window by window, until the library has it; `shown` is what llama.cpp is told of it, `moved` hears the bytes so far. */
export async function open(library, model, readers, shown = null, moved = () => {}) {
  const starts = readers.map(() => new Uint8Array());
  const grow = async (at) => {
    const [reader, have] = [readers[at], starts[at].length];
    const goal = have === 0 ? FIRST : Math.min(have * 4, have + STEP, MOST);
    if (have >= MOST) throw new Refusal(`${reader.path}: the header is longer than ${MOST} bytes`);
    const more = await reader.read(have, goal);
    if (more.length === 0) throw new Refusal(`${reader.path}: it ends inside the header`, "is the download complete?");
    starts[at] = new Uint8Array(await new Blob([starts[at], more]).arrayBuffer());
    moved(starts.reduce((sum, start) => sum + start.length, 0));
  };
  await Promise.all(readers.map((_, at) => grow(at)));
  for (;;) {
    const files = readers.map(({ path, bytes }, at) => ({ path, bytes, length: starts[at].length }));
    const answer = await library.ask({ ask: "open", model, shown, files }, starts);
    if (answer.more === undefined) return { ...answer, start: starts[0].subarray(0, answer.header) };
    await grow(readers.findIndex((reader) => reader.path === answer.more));
  }
}

/** The header of another quantisation of a repository: of its vocabulary, which is most of it, nothing is moved again. */
export async function openBeside(library, model, readers, shown, whole) {
  const start = whole && readers.length === 1 ? await readers[0].read(0, FIRST) : null;
  const range = start && (await library.ask({ ask: "rest", whole: whole.length }, [whole, start])).range;
  if (range) {
    const rest = await readers[0].read(range[0], Math.min(range[1], readers[0].bytes ?? range[1]));
    const files = [{ path: readers[0].path, bytes: readers[0].bytes, length: start.length, rest: rest.length }];
    try {
      const answer = await library.ask({ ask: "open", model, shown, files, whole: whole.length }, [whole, start, rest]);
      if (answer.more === undefined) return answer;
    } catch {
      // The two do not agree: it is read as usual.
    }
  }
  return open(library, model, readers, shown);
}

/** The Hugging Face hub. */
export class Hub {
  /** `token` gives a person's token, or nothing. Browsers do not send it on to the storage that the hub redirects to. */
  constructor(endpoint, token = () => "") {
    this.endpoint = endpoint;
    this.headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});
  }

  /** The models of a repository, and which one `which` means. */
  async list(library, repo, which) {
    let next = `${this.endpoint}/api/models/${repo}/tree/main?recursive=true`;
    const pages = [];
    while (next && pages.length < PAGES) {
      const answer = await request(next, this.headers());
      pages.push(await body(next, answer, 16 << 20));
      const link = /<([^>]+)>;\s*rel="next"/.exec(answer.headers.get("link") ?? "");
      next = link && new URL(link[1], next).origin === new URL(next).origin ? new URL(link[1], next).href : null;
    }
    return library.ask({ ask: "list", repo, which, pages: pages.map((page) => page.length) }, pages);
  }

  /** The readers of one of them; its path is what llama.cpp is told. */
  readers(repo, quant) {
    const plain = (path) => path.split("/").map(encodeURIComponent).join("/");
    return quant.files.map(({ path, bytes }) => ofAddress(`${this.endpoint}/${repo}/resolve/main/${plain(path)}`, undefined, bytes, this.headers));
  }
}

export { fileName };
