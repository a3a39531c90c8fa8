// What happens on the page: from the prompt to the board, from the budget to the choice. All text goes in as text.

import { call, Problem, setKey } from "./api.js";
import { draw, hasIntervals, top } from "./board.js";
import { budgetScale, curve, decide, dollars } from "./curve.js";
import { conversation, fromFile, shown } from "./prompts.js";

const EXAMPLES = {
  Proof: "Let f be a continuous function on [0, 1] with f(0) = f(1). Show that f(x) = f(x + 1/2) for some x.",
  Code: "Write a Python function that merges two sorted lists in linear time, with type hints and tests.",
  Law: "Under English law, can a contract be enforced when one party signed it by mistake about an essential fact?",
  Poem: "Write a haiku about the first snow of the year.",
};

const at = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

const state = { bundle: null, overall: null, costs: null, prompts: [], board: null, decision: null, file: [], all: false, literal: false };
let asking = null;
let routing = null;
let typing = 0;

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
    say(at("key").value ? "This key does not open the service." : "The service needs a key.", true);
    return;
  }
  say(error.message, true);
}

// ---- the board

function against(overall) {
  if (at("order").value === "rank") return `▲▼ ranks against the overall board of ${overall.n_prompts} prompts`;
  const mark = state.board.n_prompts > 1 ? "; * is no accident (false discovery rate 5 %)" : "";
  return `Log-odds above what models of the same overall strength have here${mark}`;
}

function drawBoard() {
  if (!state.board) return;
  const measure = chosen("measure");
  const overall = state.board === state.overall ? null : state.overall; // which is shown until something is asked
  const view = { board: state.board, overall, measure, order: at("order").value, find: at("find").value, all: state.all };
  const rows = draw(at("board"), view);
  const one = state.board.n_prompts === 1;
  const own = one ? "Leaderboard of this prompt" : `Leaderboard of ${state.board.n_prompts} prompts`;
  at("board-title").textContent = state.overall && !overall ? "Overall leaderboard" : own;
  at("board-note").textContent = overall ? against(overall) : "";
  at("legend-bar").textContent = one ? "this prompt" : "these prompts";
  at("legend-range").hidden = !hasIntervals(state.board, measure);
  at("legend-overall").hidden = !overall;
  at("more").hidden = Boolean(at("find").value.trim()) || rows <= top();
  at("more").textContent = state.all ? "Show fewer" : `Show all ${rows} models`;
}

async function ask(prompts) {
  asking?.abort();
  const mine = (asking = new AbortController());
  document.body.classList.add("busy");
  say(prompts.length > 1 ? `Scoring ${prompts.length} prompts…` : "");
  try {
    const started = performance.now();
    const board = await call("/v1/leaderboard", { prompts }, mine.signal);
    state.prompts = prompts;
    state.board = board;
    const ms = Math.max(1, Math.round(performance.now() - started));
    say(`${board.n_prompts === 1 ? "1 prompt" : `${board.n_prompts} prompts`} in ${ms} ms`);
    drawBoard();
    listPrompts();
    await route();
  } catch (error) {
    failed(error);
  } finally {
    if (asking === mine) document.body.classList.remove("busy");
  }
}

function typed() {
  const text = at("prompt").value;
  if (!text.trim()) return state.file;
  state.file = [];
  const turns = state.literal ? null : conversation(text);
  const found = Boolean(turns);
  at("read").hidden = !found;
  if (found) {
    at("read-text").textContent = `Read as a conversation of ${turns.length} user ${turns.length === 1 ? "turn" : "turns"}`;
    at("read-undo").textContent = "read as one text";
  }
  return [turns ?? text];
}

function submit() {
  clearTimeout(typing);
  const prompts = typed();
  if (prompts.length) ask(prompts);
  else say("Type a prompt first.", true);
}

async function openFile(file) {
  try {
    const prompts = fromFile(file.name, await file.text());
    at("prompt").value = "";
    state.file = prompts;
    at("read").hidden = false;
    at("read-text").textContent = `${prompts.length} ${prompts.length === 1 ? "prompt" : "prompts"} of ${file.name}`;
    at("read-undo").textContent = "close";
    ask(prompts);
  } catch (error) {
    say(error instanceof SyntaxError ? `${file.name}: not valid JSON.` : error.message, true);
  }
}

// ---- the choice

function listPrompts() {
  const several = state.prompts.length > 1;
  at("which-field").hidden = !several;
  const options = state.prompts.slice(0, 500).map((prompt, i) => new Option(`${i + 1}. ${shown(prompt).slice(0, 80)}`, String(i)));
  if (several) options.unshift(new Option(`All ${state.prompts.length} prompts`, "all"));
  at("which").replaceChildren(...options);
}

// The slider's position means a budget between what the cheapest and the dearest candidate cost.
const budget = () => budgetScale(state.decision.models.map((row) => row.cost)).cost(at("budget").value / at("budget").max);

function part(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawChoice() {
  at("choice-body").hidden = !state.decision;
  at("choice-empty").hidden = Boolean(state.decision);
  if (!state.decision) return;
  const limit = budget();
  const decision = decide(state.decision, chosen("rule"), limit);
  const all = at("which").value === "all";
  at("choice-title").textContent = all ? `Which model for these ${state.prompts.length} prompts?` : "Who should answer?";
  at("budget-text").textContent = dollars(limit);
  at("budget").setAttribute("aria-valuetext", `${dollars(limit)} for 1,000 requests`);
  const picks = Object.entries(decision.choice).sort((a, b) => b[1] - a[1]);
  const lines = picks.map(([model, share]) => {
    const line = part("div", "", "pick");
    line.append(part("span", model));
    if (picks.length > 1) line.append(part("small", `${Math.round(100 * share)}% of requests`));
    return line;
  });
  const facts = document.createElement("dl");
  const aim = decision.objective === "usable" ? "P(usable)" : `Win rate among ${decision.models.length}`;
  for (const [name, value] of [[aim, `${(100 * decision.value).toFixed(1)}%`], ["Cost of 1,000 requests", dollars(decision.expected_cost)]]) {
    const pair = document.createElement("div");
    pair.append(part("dt", name), part("dd", value));
    facts.append(pair);
  }
  at("decision").replaceChildren(...lines, facts);
  at("curve").replaceChildren(...curve(decision, limit, Math.max(260, at("curve").clientWidth)));
}

async function route() {
  if (!state.prompts.length) return;
  if (!state.costs) {
    at("choice-empty").textContent = "Give the costs of some models to see which one a budget buys.";
    at("costs-details").open = true;
    return;
  }
  routing?.abort();
  const mine = (routing = new AbortController());
  const which = at("which").value;
  const asked = which === "all" ? { prompts: state.prompts } : { prompt: state.prompts[Number(which) || 0] };
  try {
    state.decision = await call("/v1/route", { ...asked, costs: state.costs, objective: chosen("objective") }, mine.signal);
    drawChoice();
  } catch (error) {
    failed(error);
  }
}

async function useCosts() {
  let costs;
  try {
    costs = JSON.parse(at("costs").value);
  } catch {
    at("costs-status").textContent = "This is not valid JSON.";
    at("costs-status").classList.add("bad");
    return;
  }
  try {
    await call("/v1/route", { prompt: state.prompts[0] ?? "hi", costs });
    state.costs = costs;
    at("costs-status").textContent = "In use.";
    at("costs-status").classList.remove("bad");
    await route();
  } catch (error) {
    at("costs-status").textContent = error.message;
    at("costs-status").classList.add("bad");
  }
}

// ---- start

async function start() {
  try {
    const [bundle, costs] = await Promise.all([call("/v1/bundle"), call("/v1/costs")]);
    state.bundle = bundle;
    at("key-form").hidden = true;
    at("bundle").textContent = `${bundle.name} · ${bundle.models.length} models · ${bundle.family}`;
    at("fingerprint").textContent = bundle.fingerprint;
    const grounded = bundle.family === "grk";
    at("objectives").hidden = !grounded;
    document.querySelector("[data-only=usable]").hidden = !grounded;
    state.costs ??= costs.costs;
    at("costs").value ||= state.costs ? JSON.stringify(state.costs, null, 1) : "";
    say("");
    call("/v1/overall").then((overall) => {
      state.overall = overall;
      state.board ??= overall;
      drawBoard();
    }, () => {}); // a service without an overall board has none to compare with
  } catch (error) {
    failed(error);
  }
}

for (const [name, text] of Object.entries(EXAMPLES)) {
  const button = part("button", name);
  button.type = "button";
  button.title = text;
  button.addEventListener("click", () => {
    at("prompt").value = text;
    submit();
  });
  at("examples").append(button);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  }
});
at("prompt").addEventListener("input", () => {
  state.literal = false;
  clearTimeout(typing);
  const prompts = typed();
  if (!prompts.length) at("read").hidden = true;
  else if (prompts !== state.file) typing = setTimeout(() => ask(prompts), 500);
});
at("read-undo").addEventListener("click", () => {
  at("read").hidden = true;
  state.literal = true;
  if (at("prompt").value.trim()) return submit();
  state.file = [];
  at("prompt").focus();
});
at("file").addEventListener("change", () => {
  if (at("file").files.length) openFile(at("file").files[0]);
  at("file").value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
  });
}
for (const group of ["measures", "order", "find"]) at(group).addEventListener("input", drawBoard);
at("more").addEventListener("click", () => {
  state.all = !state.all;
  drawBoard();
});
at("budget").addEventListener("input", drawChoice);
at("budget").addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 25, ArrowUp: 25, ArrowLeft: -25, ArrowDown: -25, PageUp: 100, PageDown: -100 }[event.key];
  if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault(); // the slider's own step is for pointers: a thousandth
  at("budget").value = Number(at("budget").value) + steps;
  drawChoice();
});
addEventListener("resize", drawChoice);
at("rules").addEventListener("change", drawChoice);
for (const group of ["objectives", "which"]) at(group).addEventListener("change", route);
at("costs-use").addEventListener("click", useCosts);
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(at("key").value);
  start();
});

start();
