// Servers on loopback addresses: the page's own, one that behaves as the hub does, and one that misbehaves.
import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".wasm": "application/wasm" };
const OPEN = { "access-control-allow-origin": "*", "access-control-allow-headers": "authorization, range", "access-control-expose-headers": "Content-Range, ETag, Link" };

async function listening(handle, port = 0) {
  const server = createServer(handle);
  await new Promise((done) => server.listen(port, "127.0.0.1", done));
  return { server, origin: `http://127.0.0.1:${server.address().port}`, close: () => server.closeAllConnections() ?? server.close() };
}

/** The page, as any static host serves it; `hub` stands in for Hugging Face. */
export function pages(folder, hub, port) {
  return listening(({ url }, answer) => {
    const path = normalize(new URL(url, "http://h").pathname).replace(/\/$/, "/index.html");
    try {
      let body = readFileSync(join(folder, path));
      if (path === "/index.html") body = body.toString().replace("https://huggingface.co", hub);
      answer.writeHead(200, { "content-type": TYPES[extname(path)] ?? "application/octet-stream" }).end(body);
    } catch {
      answer.writeHead(404).end();
    }
  }, port);
}

/** A range of a file, with what the hub's storage says of it. */
function ranged(request, answer, file) {
  const size = statSync(file).size;
  const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
  if (from === undefined || Number(from) >= size) {
    answer.writeHead(416, OPEN).end();
    return 0;
  }
  const last = Math.min(Number(to), size - 1);
  const bytes = Buffer.alloc(last + 1 - Number(from));
  const handle = openSync(file, "r");
  readSync(handle, bytes, 0, bytes.length, Number(from));
  closeSync(handle);
  answer.writeHead(206, { ...OPEN, "content-range": `bytes ${from}-${last}/${size}`, "content-length": bytes.length, etag: `"${size}"`, "content-type": "application/octet-stream" });
  answer.end(bytes);
  return bytes.length;
}

/**
 * `repositories`: by owner/name the paths of files, with the files. Lists come in pages of two, files by a redirect. Those of `gated/`
 * want a token.
 */
export async function hub(repositories) {
  const counts = { bytes: 0, requests: 0, tokens: 0 };
  const storage = await listening((request, answer) => {
    counts.requests += 1;
    if (request.headers.authorization) counts.tokens += 1;
    const [, repo, path] = /^\/([^/]+\/[^/]+)\/(.*)$/.exec(decodeURIComponent(new URL(request.url, "http://h").pathname)) ?? [];
    const file = repositories[repo]?.[path];
    if (file) counts.bytes += ranged(request, answer, file);
    else answer.writeHead(404, OPEN).end();
  });
  const front = await listening((request, answer) => {
    const url = new URL(request.url, front.origin);
    if (request.method === "OPTIONS") return answer.writeHead(204, OPEN).end();
    if (url.pathname.includes("/gated/") && request.headers.authorization !== "Bearer hf_right") return answer.writeHead(401, OPEN).end();
    const [, listed] = /^\/api\/models\/([^/]+\/[^/]+)\/tree\/main$/.exec(url.pathname) ?? [];
    if (listed) {
      if (!repositories[listed]) return answer.writeHead(401, OPEN).end();
      const at = Number(url.searchParams.get("cursor") ?? 0);
      const all = Object.entries(repositories[listed]).map(([path, file]) => ({ type: "file", path, size: statSync(file).size, oid: path }));
      const more = at + 2 < all.length ? { link: `<${url.origin}${url.pathname}?recursive=true&cursor=${at + 2}>; rel="next"` } : {};
      return answer.writeHead(200, { ...OPEN, ...more, "content-type": "application/json" }).end(JSON.stringify(all.slice(at, at + 2)));
    }
    const [, repo, path] = /^\/([^/]+\/[^/]+)\/resolve\/main\/(.*)$/.exec(url.pathname) ?? [];
    if (!repo) return answer.writeHead(404, OPEN).end();
    answer.writeHead(302, { ...OPEN, location: `${storage.origin}/${repo}/${path}` }).end();
  });
  return { origin: front.origin, storage: storage.origin, counts, close: () => [front, storage].forEach((one) => one.close()) };
}

/** The first bytes of a file. */
function start(file, length) {
  const bytes = Buffer.alloc(length);
  const handle = openSync(file, "r");
  readSync(handle, bytes, 0, length, 0);
  closeSync(handle);
  return bytes;
}

/** What goes wrong with servers, by path. */
export function misbehaving(file) {
  return listening((request, answer) => {
    const how = new URL(request.url, "http://h").pathname.split("/")[1];
    switch (how) {
      case "closed": // No page of another site may read it.
        return answer.writeHead(200, { "content-type": "application/octet-stream" }).end("GGUF");
      case "page":
        return answer.writeHead(200, { ...OPEN, "content-type": "text/html; charset=utf-8" }).end("<h1>Model card</h1>");
      case "gone":
        return answer.writeHead(404, OPEN).end();
      case "busy":
        return answer.writeHead(503, OPEN).end();
      case "cut":
        answer.writeHead(206, { ...OPEN, "content-range": "bytes 0-65535/900000", "content-length": 65536 });
        answer.write(start(file, 100));
        return setTimeout(() => answer.destroy(), 50);
      case "other": // Another range than was asked for.
        return answer.writeHead(206, { ...OPEN, "content-range": "bytes 7-70000/900000" }).end(Buffer.alloc(65536));
      case "text":
        return answer.writeHead(206, { ...OPEN, "content-range": "bytes 0-11/12" }).end("<script>x()");
      case "whole": { // No ranges: the file from its start, and it never ends.
        answer.writeHead(200, { ...OPEN, "content-type": "application/octet-stream" });
        answer.write(start(file, 16 << 20));
        const zeros = Buffer.alloc(1 << 16);
        const more = () => {
          while (!answer.destroyed && answer.write(zeros));
        };
        answer.on("drain", more);
        return more();
      }
      default:
        return ranged(request, answer, file);
    }
  });
}
