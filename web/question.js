// The question that the page's fields make up, as the library takes it.

/** What the first visit shows. scripts/web keeps the answers to its questions, so that they are there before the library is. */
export const FIRST = { model: "gpt-oss-120b", gpu: "RTX 4090", ram: "64G", kind: "ddr5-6000x2" };

/** The wish of a question; `value` gives the text of a field, empty where it is not asked. */
export function wish(value, extra = {}, projector = null) {
  const list = (name) => value(name).split(",").map((one) => one.trim()).filter(Boolean);
  const described = { gpu: list("gpu"), vram: list("gpu").length ? [] : list("vram") };
  if (value("ram")) described.ram = value("kind") ? `${value("ram")}@${value("kind")}` : value("ram");
  if (value("cpu")) described.cpu = value("cpu");
  const planning = { ...extra };
  if (value("c")) planning.ctx_size ??= value("c");
  if (value("objective")) planning.objective = value("objective");
  const words = [];
  for (const [name, flags] of [["np", ["-np"]], ["ctk", ["-ctk", "-ctv"]], ["ub", ["-ub"]]]) {
    if (value(name)) words.push(...flags.flatMap((flag) => [flag, value(name)]));
  }
  if (projector === "") words.push("--no-mmproj");
  return { machine: described, margin: value("margin") || null, planning, words, projector: projector || null };
}

/** What the first visit asks until a launch is shown, each question answered by `ask`: pairs of question and answer. */
export function first(ask) {
  const pairs = [];
  const asked = (question) => {
    const answer = ask(question);
    pairs.push([question, answer]);
    return answer;
  };
  const { recipe } = asked({ ask: "known" }).models.find(({ spec }) => spec === FIRST.model);
  const model = `${FIRST.model} ${recipe}`;
  asked({ ask: "make", model, spec: FIRST.model, recipe });
  asked({ ask: "brief", model, wish: wish((name) => FIRST[name] ?? "") });
  return pairs;
}
