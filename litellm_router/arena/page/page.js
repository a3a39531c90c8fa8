// What happens on the page: a prompt, two answers, a vote, the names. All text of prompts and answers goes in as text.

import { draw } from "./board.js";
import { markdown } from "./markdown.js";

const KEY = "p2l-arena-key";
const TRIES = 3; // pairs that are asked, where models fail
const EVERY_MS = 15_000;

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const at = (id) => document.getElementById(id);
const SIDES = ["A", "B"];
const SHORT = { a: "A", 1: "A", b: "B", 2: "B", t: "tie", 3: "tie", x: "both bad", 4: "both bad" };
const VERDICTS = { A: "You voted for A", B: "You voted for B", tie: "You voted for both", "both bad": "You voted for neither" };

const state = { battle: null, ready: false, busy: false, seen: [], board: null, turnsLeft: 0 };

class Problem extends Error {}

function say(text, bad = false) {
  at("status").textContent = text;
  at("note").textContent = at("after").hidden ? text : ""; // the status is out of sight beside long answers
  for (const id of ["status", "note"]) at(id).classList.toggle("bad", bad);
}

async function call(path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Problem("The arena can't be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
    throw new Problem(key ? "This key does not open the arena." : "The arena needs a key.");
  }
  const problem = await response.json().catch(() => ({}));
  const detail = typeof problem.detail === "string" ? problem.detail : `the arena answered with status ${response.status}`;
  throw new Problem(`${detail[0].toUpperCase()}${detail.slice(1)}.`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

// ---- the answers

function turn(prompt) {
  const texts = {};
  for (const side of SIDES) {
    const said = document.createElement("div");
    said.className = "said";
    said.textContent = prompt;
    const text = document.createElement("div");
    text.className = "text waiting";
    at(`chat-${side}`).append(said, text);
    texts[side] = { node: text, text: "", drawn: 0 };
  }
  return texts;
}

function show(one) {
  if (one.drawn) return;
  one.drawn = requestAnimationFrame(() => {
    one.drawn = 0;
    one.node.replaceChildren(...markdown(one.text));
  });
}

function setReady(ready) {
  state.ready = ready;
  for (const button of at("votes").querySelectorAll("button")) button.disabled = !ready;
  at("more").hidden = !ready || state.turnsLeft < 1;
}

function setBusy(busy) {
  state.busy = busy;
  at("send").disabled = busy;
}

function clear() {
  state.battle = null;
  state.turnsLeft = 0;
  setReady(false);
  for (const side of SIDES) {
    at(`chat-${side}`).replaceChildren();
    at(`name-${side}`).textContent = `Answer ${side}`;
    at(`side-${side}`).classList.remove("won");
  }
  for (const button of at("votes").querySelectorAll("button")) button.removeAttribute("aria-pressed");
  at("after").hidden = true;
  at("votes").hidden = false;
}

// One pair of answers; a sentence where it failed.
async function round(prompt, battle) {
  const response = await call("/api/battle", battle === null ? { prompt } : { prompt, battle });
  const texts = turn(prompt);
  let failure = "The answers broke off";
  for await (const event of events(response)) {
    if (event.battle) state.battle = event.battle;
    if (event.text) {
      texts[event.side].text += event.text;
      show(texts[event.side]);
    }
    if (event.end) {
      const { node, text } = texts[event.side];
      node.classList.remove("waiting");
      if (!text.trim()) node.textContent = "(This answer is empty.)";
    }
    if (event.failed) failure = event.final ? { text: event.failed } : event.failed;
    if (event.ready) {
      state.turnsLeft = event.turns_left;
      failure = null;
    }
  }
  return failure;
}

async function ask(prompt) {
  for (let tries = 1; ; tries += 1) {
    clear();
    at("battle").hidden = false;
    at("battle-title").focus({ preventScroll: true }); // out of the prompt, so that a key is a vote
    at("battle").scrollIntoView({ block: "start", behavior: CALM.matches ? "auto" : "smooth" });
    const failure = await round(prompt, null);
    if (!failure) return;
    at("battle").hidden = true;
    if (failure.text) throw new Problem(`${failure.text[0].toUpperCase()}${failure.text.slice(1)}.`);
    if (tries === TRIES) throw new Problem("Models gave no answer, several times. Try again later.");
    say("A model gave no answer, so that pair does not count. Here is another one …");
  }
}

async function follow(prompt) {
  at("battle-title").focus({ preventScroll: true });
  const failure = await round(prompt, state.battle);
  if (!failure) return;
  clear();
  at("battle").hidden = true;
  throw new Problem("A model gave no answer, so this pair does not count. Ask anew.");
}

async function run(work, prompt) {
  if (state.busy || !prompt.trim()) return;
  setBusy(true);
  setReady(false);
  say("Two models answer …");
  try {
    await work(prompt);
    setReady(true);
    say("Both answers are complete. Which one is better?");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say(error.message, true);
    if (state.battle === null) at("battle").hidden = true;
    else setReady(true);
  } finally {
    setBusy(false);
  }
}

// ---- the vote

async function vote(choice) {
  if (!state.ready) return;
  setReady(false);
  try {
    const told = await (await call("/api/vote", { battle: state.battle, vote: choice })).json();
    at("votes").querySelector(`[data-vote="${choice}"]`).setAttribute("aria-pressed", "true");
    for (const side of SIDES) {
      at(`name-${side}`).textContent = told[side];
      at(`side-${side}`).classList.toggle("won", choice === side || choice === "tie");
    }
    at("verdict").textContent = `${VERDICTS[choice]}. A is ${told.A}, B is ${told.B}.`;
    at("after").hidden = false;
    state.seen = [told.A, told.B];
    say(`Thank you. A was ${told.A}, B was ${told.B}.`);
    drawBoard(told.board);
    at("again").focus({ preventScroll: true });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say(error.message, true);
    setReady(true);
  }
}

function again() {
  clear();
  at("battle").hidden = true;
  say("");
  at("prompt").value = "";
  at("prompt").focus();
}

// ---- the board

function drawBoard(board) {
  const { votes } = board;
  state.board = board;
  at("count").textContent = `${board.leaderboard.length} models · ${votes} ${votes === 1 ? "vote" : "votes"}`;
  at("board-note").textContent = votes ? "" : "No votes yet: all models are alike.";
  draw(at("board").tBodies[0], board, state.seen);
}

async function loadBoard() {
  drawBoard(await (await call("/api/board")).json());
}

async function start() {
  try {
    await loadBoard();
    say("");
    return true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say(error.message, true);
    return false;
  }
}

// ---- what people do

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run(ask, at("prompt").value);
});
at("more").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at("follow").value;
  at("follow").value = "";
  run(follow, prompt);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  if (await start()) {
    at("key-form").hidden = true;
    at("prompt").focus();
  }
});
at("votes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && !button.disabled) vote(button.dataset.vote);
});
at("again").addEventListener("click", again);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest("input, textarea")) return;
  const choice = SHORT[event.key.toLowerCase()];
  if (choice) vote(choice);
  else if (event.key.toLowerCase() === "n" && !at("after").hidden) {
    event.preventDefault(); // else the letter is typed into the prompt
    again();
  }
});
setInterval(() => {
  if (!document.hidden && state.board) loadBoard().catch(() => {});
}, EVERY_MS);
start();
