// The leaderboard as bars: value, interval, and where the overall board has the model.

// Rows that are shown until all are asked for.
export const top = () => (matchMedia("(max-width: 60rem)").matches ? 10 : 25);

const percent = (x) => `${(100 * x).toFixed(1)}%`;
const signed = (x, digits) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;

export const MEASURES = {
  win_rate: { text: percent, change: (x) => `${signed(100 * x, 1)}`, least: 0.0005, unit: "points" },
  usable: { text: percent, change: (x) => `${signed(100 * x, 1)}`, least: 0.0005, unit: "points" },
  coef: { text: (x) => signed(x, 2), change: (x) => signed(x, 2), least: 0.005, unit: "" },
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function scale(rows, overall, measure) {
  const names = rows.flatMap((row) => [row[measure], row[`${measure}_low`], row[`${measure}_high`], overall.get(row.model)?.[measure]]);
  const values = names.filter((value) => Number.isFinite(value));
  const low = Math.min(0, ...values);
  const high = Math.max(measure === "coef" ? 0 : 0.01, ...values);
  const room = 0.02 * (high - low);
  const [from, to] = measure === "coef" ? [low - room, high + room] : [0, Math.min(1, high + room)];
  const at = (x) => 100 * Math.min(1, Math.max(0, (x - from) / (to - from)));
  return { at, zero: at(0) };
}

function bar(row, before, measure, { at, zero }) {
  const track = element("div", "track");
  track.setAttribute("aria-hidden", "true");
  const fill = element("div", "fill");
  fill.style.left = `${Math.min(zero, at(row[measure]))}%`;
  fill.style.width = `${Math.max(0.4, Math.abs(at(row[measure]) - zero))}%`;
  track.append(fill);
  if (zero > 0) {
    const line = element("div", "zero");
    line.style.left = `${zero}%`;
    track.append(line);
  }
  const [low, high] = [row[`${measure}_low`], row[`${measure}_high`]];
  if (Number.isFinite(low) && Number.isFinite(high)) {
    const range = element("div", "range");
    range.style.left = `${at(low)}%`;
    range.style.width = `${at(high) - at(low)}%`;
    track.append(range);
  }
  if (before) {
    const tick = element("div", "tick");
    tick.style.left = `${at(before[measure])}%`;
    track.append(tick);
  }
  return track;
}

const rankText = (row) =>
  row.rank_low && row.rank_high && row.rank_low !== row.rank_high ? `${row.rank_low}–${row.rank_high}` : `${row.rank}`;

function item(row, before, measure, onScale) {
  const form = MEASURES[measure];
  const made = element("li", `row${row.rank === 1 ? " first" : ""}${row.grounded === false ? " apart" : ""}`);
  const change = before ? row[measure] - before[measure] : null;
  const steady = change === null || Math.abs(change) < form.least;
  const [low, high] = [row[`${measure}_low`], row[`${measure}_high`]];
  const interval = Number.isFinite(low) ? `, 95% interval ${form.text(low)} to ${form.text(high)}` : "";
  const moved = before ? `; overall ${form.text(before[measure])}, rank ${rankText(before)}` : "";
  const little = row.little_known ? `; little is known of it: ${Math.round(row.support)} effective votes` : "";
  made.title = `${row.model}: ${form.text(row[measure])}${interval}${moved}${little}`;
  const name = element("span", "name", `${row.model}${row.little_known ? " ‡" : ""}`);
  const value = element("span", "value", form.text(row[measure]));
  const said = element("span", "unseen", `${interval}${little}`);
  const direction = steady ? "" : change > 0 ? " up" : " down";
  const delta = element("span", `change${direction}`, change === null ? "" : steady ? "=" : `${change > 0 ? "▲" : "▼"} ${form.change(change).slice(1)}`);
  if (!steady) delta.setAttribute("aria-label", `${form.change(change)} ${form.unit} against the overall board`);
  value.append(said);
  made.append(element("span", "rank", rankText(row)), name, bar(row, before, measure, onScale), value, delta);
  return made;
}

// Draws `view.board` into the list; returns how many rows there are in all.
export function draw(list, view) {
  const { board, overall, measure, order, find, all } = view;
  const before = new Map((overall?.leaderboard ?? []).map((row) => [row.model, row]));
  let rows = board.leaderboard;
  const change = (row) => row[measure] - (before.get(row.model)?.[measure] ?? row[measure]);
  const apartLast = (a, b) => (a.grounded === false) - (b.grounded === false);
  if (order === "gain") rows = [...rows].sort((a, b) => apartLast(a, b) || change(b) - change(a));
  if (order === "loss") rows = [...rows].sort((a, b) => apartLast(a, b) || change(a) - change(b));
  const wanted = find.trim().toLowerCase();
  if (wanted) rows = rows.filter((row) => row.model.toLowerCase().includes(wanted));
  const shown = all || wanted ? rows : rows.slice(0, top());
  const onScale = scale(board.leaderboard, before, measure);
  const items = shown.map((row) => item(row, before.get(row.model), measure, onScale));
  const apart = shown.findIndex((row) => row.grounded === false);
  if (apart >= 0) {
    items.splice(apart, 0, element("li", "apart-note", "Comparable among themselves only:"));
  }
  if (!items.length) items.push(element("li", "empty", "No model of that name."));
  list.classList.toggle("ranges", rows.some((row) => rankText(row).includes("–")));
  list.replaceChildren(...items);
  return rows.length;
}

export const hasIntervals = (board, measure) => board.leaderboard.some((row) => Number.isFinite(row[`${measure}_low`]));
