// From what a person typed, pasted or dropped to prompts: strings, or lists of the user turns of a conversation.

const USER = /^\s*(?:\*\*)?(?:user|human|me|you)(?:\*\*)?\s*:\s*(?:\*\*)?\s*/i;
const OTHER = /^\s*(?:\*\*)?(?:assistant|ai|bot|system|chatgpt|claude|gemini|gpt(?:-[\w.]+)?|model)(?:\*\*)?\s*:\s*(?:\*\*)?\s*/i;

const textOf = (content) =>
  typeof content === "string"
    ? content
    : Array.isArray(content)
      ? content.map((part) => (typeof part === "string" ? part : typeof part?.text === "string" ? part.text : "")).filter(Boolean).join("\n")
      : "";

function fromMessages(messages) {
  const turns = messages.filter((message) => message?.role === "user").map((message) => textOf(message.content));
  return turns.filter((turn) => turn.trim());
}

// A prompt from one JSON value, or null: "text", ["turn", …], {prompt}, {messages}, [{role, content}, …].
export function fromValue(value) {
  if (typeof value === "string") return value.trim() ? value : null;
  if (Array.isArray(value)) {
    if (!value.length) return null;
    if (value.every((turn) => typeof turn === "string")) return value.some((turn) => turn.trim()) ? value : null;
    const turns = fromMessages(value);
    return turns.length ? turns : null;
  }
  if (value && typeof value === "object") return fromValue(value.prompt ?? value.messages ?? null);
  return null;
}

// The user turns of a pasted conversation, or null where the text does not look like one.
export function conversation(text) {
  const trimmed = text.trim();
  if (/^[[{]/.test(trimmed)) {
    try {
      const turns = fromValue(JSON.parse(trimmed));
      return Array.isArray(turns) ? turns : null;
    } catch {
      return null;
    }
  }
  const turns = [];
  let speaker = "";
  let others = 0;
  for (const line of text.split(/\r?\n/)) {
    if (USER.test(line)) {
      speaker = "user";
      turns.push(line.replace(USER, ""));
    } else if (OTHER.test(line)) {
      speaker = "other";
      others += 1;
    } else if (speaker === "user") {
      turns[turns.length - 1] += `\n${line}`;
    } else if (!speaker && line.trim()) {
      return null;
    }
  }
  const said = turns.map((turn) => turn.trim()).filter(Boolean);
  return said.length && (others || said.length > 1) ? said : null;
}

function csvRows(text) {
  const rows = [[""]];
  let quoted = false;
  for (let i = 0; i < text.length; i += 1) {
    const row = rows[rows.length - 1];
    const character = text[i];
    if (quoted) {
      if (character !== '"') row[row.length - 1] += character;
      else if (text[i + 1] === '"') row[row.length - 1] += text[(i += 1)];
      else quoted = false;
    } else if (character === '"') quoted = true;
    else if (character === ",") row.push("");
    else if (character === "\n") rows.push([""]);
    else if (character !== "\r") row[row.length - 1] += character;
  }
  return rows.filter((row) => row.length > 1 || row[0]);
}

// The prompts of a file, as `p2l leaderboard` reads them. Throws an Error with one sentence.
export function fromFile(name, text) {
  const ending = name.toLowerCase().split(".").pop();
  const clean = text.replace(/^\uFEFF/, "");
  let values;
  if (ending === "json") {
    const whole = JSON.parse(clean);
    const list = Array.isArray(whole) ? whole : (whole?.prompts ?? [whole]);
    values = Array.isArray(list) ? list : [list];
    if (values.length && values.every((value) => value && typeof value === "object" && "role" in value)) values = [values];
  } else if (ending === "jsonl" || ending === "ndjson") {
    values = clean.split("\n").filter((line) => line.trim()).map((line, i) => {
      try {
        return JSON.parse(line);
      } catch {
        throw new Error(`${name}: line ${i + 1} is not valid JSON.`);
      }
    });
  } else if (ending === "csv") {
    const [header, ...rows] = csvRows(clean);
    const column = header.indexOf("prompt");
    if (column < 0) throw new Error(`${name}: there is no column "prompt".`);
    values = rows.map((row) => row[column] ?? "");
  } else if (ending === "txt") {
    values = clean.split(/\r?\n/);
  } else {
    throw new Error(`${name}: the ending is not one of .txt, .json, .jsonl, .csv.`);
  }
  const prompts = values.map(fromValue).filter((prompt) => prompt !== null);
  if (!prompts.length) throw new Error(`${name}: no prompts were found.`);
  return prompts;
}

export const shown = (prompt) => (Array.isArray(prompt) ? prompt[prompt.length - 1] : prompt).trim().replace(/\s+/g, " ");
