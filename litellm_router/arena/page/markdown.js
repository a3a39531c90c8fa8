// Markdown as DOM nodes. Text goes in as text only; no tag, attribute or address of an answer is taken over, but for the
// href of http(s) links. Headings, lists, code, quotes, tables and emphasis; images are shown as their description.

const DEEPEST = 6; // of lists, quotes and emphasis inside one another

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

// ---- within a line

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const WORD = /[\p{L}\p{N}_]/u;

function close(text, mark, from) {
  for (let at = text.indexOf(mark, from); at !== -1; at = text.indexOf(mark, at + 1)) {
    const single = mark.length === 1;
    if (/\s/.test(text[at - 1]) || (single && (text[at + 1] === mark || text[at - 1] === mark))) continue;
    if (mark[0] === "_" && WORD.test(text[at + mark.length] ?? "")) continue;
    return at;
  }
  return -1;
}

function link(text, at) {
  const found = /^(!?)\[([^[\]]{0,500})\]\(([^()\s]{0,2000})(?:\s+"[^"]{0,500}")?\)/.exec(text.slice(at, at + 3100));
  return found && { all: found[0], image: found[1] === "!", text: found[2], address: found[3] };
}

function anchor(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  const made = element("a", ...children);
  made.href = url.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

function inline(text, depth = 0) {
  const out = [];
  const missing = new Set(); // marks that are not closed from here on
  let plain = "";
  const put = (node) => {
    if (plain) out.push(document.createTextNode(plain));
    plain = "";
    out.push(node);
  };
  for (let i = 0; i < text.length; ) {
    const sign = text[i];
    if (sign === "\\" && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (sign === "`") {
      const ticks = /^`+/.exec(text.slice(i, i + 50))[0];
      let end = missing.has(ticks) ? -1 : text.indexOf(ticks, i + ticks.length);
      while (end !== -1 && text[end + ticks.length] === "`") {
        while (text[end] === "`") end += 1;
        end = text.indexOf(ticks, end);
      }
      if (end !== -1) {
        const code = text.slice(i + ticks.length, end);
        put(element("code", code.trim() ? code.replace(/^ (.*) $/s, "$1") : code));
        i = end + ticks.length;
        continue;
      }
      missing.add(ticks);
      plain += ticks;
      i += ticks.length;
      continue;
    }
    if (depth < DEEPEST && (sign === "[" || (sign === "!" && text[i + 1] === "["))) {
      const found = link(text, i);
      if (found) {
        const children = inline(found.text, depth + 1);
        const made = found.image ? null : anchor(found.address, children);
        if (made) put(made);
        else children.forEach(put);
        i += found.all.length;
        continue;
      }
    }
    if (depth < DEEPEST && "*_~".includes(sign)) {
      const mark = MARKS.find(([signs]) => text.startsWith(signs, i) && !missing.has(signs));
      const length = mark?.[0].length;
      const opens = mark && text[i + length] && !/\s/.test(text[i + length]) && !(sign === "_" && WORD.test(text[i - 1] ?? ""));
      if (opens) {
        const end = close(text, mark[0], i + length + 1);
        if (end !== -1) {
          put(element(mark[1], ...inline(text.slice(i + length, end), depth + 1)));
          i = end + length;
          continue;
        }
        missing.add(mark[0]);
      }
      const run = mark ? mark[0] : sign;
      plain += run;
      i += run.length;
      continue;
    }
    plain += sign;
    i += 1;
  }
  if (plain) out.push(document.createTextNode(plain));
  return out;
}

// ---- lines

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const HEADING = /^ {0,3}#{1,6}\s+(.*?)(\s#+)?\s*$/;
const CELLS = /^ *\|?( *:?-+:? *\|)+( *:?-+:? *)?$/;

const begins = (line) => FENCE.test(line) || ITEM.test(line) || RULE.test(line) || HEADING.test(line) || /^ {0,3}>/.test(line);
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines, at) {
  const row = (tag, line) => element("tr", ...cells(line).map((cell) => element(tag, ...inline(cell))));
  const head = element("thead", row("th", lines[at]));
  const body = element("tbody");
  let i = at + 2;
  for (; i < lines.length && lines[i].includes("|"); i += 1) body.append(row("td", lines[i]));
  const scrolled = element("div", element("table", head, body));
  scrolled.className = "wide";
  scrolled.tabIndex = 0;
  return [scrolled, i];
}

function list(lines, at, depth) {
  const [, indent, first] = ITEM.exec(lines[at]);
  const numbered = /\d/.test(first);
  const made = element(numbered ? "ol" : "ul");
  if (numbered) made.start = Number.parseInt(first, 10);
  let i = at;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length > indent.length + 1 || item[1].length < indent.length || /\d/.test(item[2]) !== numbered) break;
    const inside = [item[4]];
    const width = item[1].length + 2;
    for (i += 1; i < lines.length; i += 1) {
      const line = lines[i];
      if (!line.trim()) {
        const next = lines[i + 1] ?? "";
        if (!next.startsWith(" ".repeat(width))) break;
        inside.push("");
      } else if (line.startsWith(" ".repeat(width)) || (!begins(line) && lines[i - 1].trim())) {
        inside.push(line.replace(new RegExp(`^ {0,${Math.max(width, item[1].length + item[2].length + 1)}}`), ""));
      } else break;
    }
    const only = inside.every((line, k) => k === 0 || (line.trim() && !begins(line)));
    made.append(element("li", ...(only ? inline(inside.join("\n")) : blocks(inside, depth + 1))));
    while (i + 1 < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1])) i += 1;
  }
  return [made, i];
}

function blocks(lines, depth) {
  const out = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) out.push(element(depth ? "div" : "p", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      flush();
      const code = [];
      for (i += 1; i < lines.length && !lines[i].trim().startsWith(fence[1]); i += 1) code.push(lines[i]);
      const made = element("pre", element("code", code.join("\n")));
      made.tabIndex = 0;
      out.push(made);
      i += 1;
    } else if (RULE.test(line)) {
      flush();
      out.push(element("hr"));
      i += 1;
    } else if (HEADING.test(line)) {
      flush();
      out.push(element("h4", ...inline(HEADING.exec(line)[1])));
      i += 1;
    } else if (depth < DEEPEST && ITEM.test(line)) {
      flush();
      const [made, next] = list(lines, i, depth);
      out.push(made);
      i = next;
    } else if (depth < DEEPEST && /^ {0,3}>/.test(line)) {
      flush();
      const inside = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i += 1) inside.push(lines[i].replace(/^ {0,3}> ?/, ""));
      out.push(element("blockquote", ...blocks(inside, depth + 1)));
    } else if (line.includes("|") && CELLS.test(lines[i + 1] ?? "")) {
      flush();
      const [made, next] = table(lines, i);
      out.push(made);
      i = next;
    } else {
      if (line.trim()) paragraph.push(line);
      else flush();
      i += 1;
    }
  }
  flush();
  return out;
}

// The nodes of a text.
export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}
