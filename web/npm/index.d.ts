/** What the library refuses, in its own words; `hint` says what to try. */
export class Refusal extends Error {
  hint: string;
}

/** The library stopped: load another one. */
export class Stopped extends Error {}

/** A file whose header is read. */
export interface HeaderFile {
  /** Its path or name; of a shard, the name says which. */
  path: string;
  /** Its length, where it is known. */
  bytes?: number;
  /** Its bytes from `from` to before `to`, fewer where it ends. */
  read(from: number, to: number): Promise<Uint8Array>;
}

/** What a header says at once. */
export interface Summary {
  name: string;
  path: string;
  bytes: number;
  context_length: number;
  files: number;
  /** Bytes of the first file’s header. */
  header: number;
}

/** A machine in the words of the program's flags. */
export interface Machine {
  gpu?: string[];
  vram?: string[];
  device?: string[];
  /** `64G`, or `64G@ddr5-6000x2`. */
  ram?: string;
  memory_bandwidth?: number;
  cpu?: string;
  cores?: number;
  /** Less of a card is free under Windows, and less of main memory can be pinned. */
  windows?: boolean;
  backend?: "cuda" | "vulkan" | "metal" | "rocm" | "musa" | "sycl" | "cann" | "opencl" | "rpc" | "cpu";
}

/** What is asked of the planner, as `moeplan plan` takes it. */
export interface Planning {
  ctx_size?: string;
  strategy?: "auto" | "experts-on-host" | "first-n" | "all-on-device" | "rules";
  objective?: "turn" | "tg" | "pp" | "context";
  allow_quantized_cache?: boolean;
  build?: number;
  explain?: boolean;
  tensors?: boolean;
  prompt?: number;
  generate?: number;
  depth?: number;
}

export interface Wish {
  machine?: Machine;
  /** Kept free of each device: `512M`. */
  margin?: string;
  planning?: Planning;
  /** llama.cpp's own flags, which a plan keeps. */
  words?: string[];
}

/** A document of the program's; `schema/` has the schemas. */
export type Document = { schema: string } & Record<string, any>;

export interface Moeplan {
  /** Opens a model under a name: all its shards, of which only headers are read. */
  open(model: string, files: HeaderFile[], shown?: string): Promise<Summary>;
  /** Makes the header of a known model; `known()` lists them. */
  make(model: string, spec: string, recipe?: string): Summary;
  forget(model: string): void;
  known(): { known: Document; models: { spec: string; model: string; recipe: string }[]; recipes: string[] };
  /** Each answer has the page that the program writes with `--format html`, too. */
  inspect(model: string): { inspection: Document; html: string };
  plan(model: string, wish?: Wish): { plan: Document; html: string };
  /** With `plan`, of one command also what the planner makes of its model. */
  check(model: string, text: string, wish?: Wish, plan?: boolean): { check: Document; html: string };
  plans(models: string[], wish?: Wish): { plans: Document; html: string };
}

export function load(wasm?: WebAssembly.Module | BufferSource): Promise<Moeplan>;
