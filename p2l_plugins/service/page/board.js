// The leaderboard as bars: value, interval, and where the overall board has the model.

// Rows that are shown until all are asked for.
export const top = () => (matchMedia("(max-width: 60rem)").matches ? 10 : 25);

const percent = (x) => `${(100 * x).toFixed(1)}%`;
const signed = (x, digits) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;

export const MEASURES = {
  win_rate: percent,
  usable: percent,
  coef: (x) => signed(x, 2),
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

// How many ranks the model stands above or below its place on the overall board.
function ranksMoved(row, before) {
  const moved = before.rank - row.rank;
  const made = element("span", `change${moved > 0 ? " up" : moved < 0 ? " down" : ""}`, moved ? `${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}` : "=");
  const ranks = Math.abs(moved) === 1 ? "rank" : "ranks";
  made.setAttribute("aria-label", moved ? `${Math.abs(moved)} ${ranks} ${moved > 0 ? "above" : "below"} the overall board` : "same rank as overall");
  return made;
}

// Its coefficient less what its overall one predicts here.
function amongPeers(row) {
  const x = row.interaction;
  const made = element("span", `change${x > 0 ? " up" : " down"}`, `${signed(x, 2)}${row.holds ? " *" : ""}`);
  made.setAttribute("aria-label", `${signed(x, 2)} against peers${row.holds ? ", no accident" : ""}`);
  return made;
}

function peersText(row) {
  if (!Number.isFinite(row.interaction)) return "";
  const [low, high] = [row.interaction_low, row.interaction_high];
  const interval = Number.isFinite(low) ? ` (95% interval ${signed(low, 2)} to ${signed(high, 2)})` : "";
  return `; ${signed(row.interaction, 2)} against models of its overall strength${interval}`;
}

function item(row, before, { measure, order }, onScale) {
  const text = MEASURES[measure];
  const made = element("li", `row${row.rank === 1 ? " first" : ""}${row.grounded === false ? " apart" : ""}`);
  const [low, high] = [row[`${measure}_low`], row[`${measure}_high`]];
  const interval = Number.isFinite(low) ? `, 95% interval ${text(low)} to ${text(high)}` : "";
  const moved = before ? `; overall ${text(before[measure])}, rank ${rankText(before)}${peersText(row)}` : "";
  const little = row.little_known ? `; little is known of it: ${Math.round(row.support)} effective votes` : "";
  made.title = `${row.model}: ${text(row[measure])}${interval}${moved}${little}`;
  const name = element("span", "name", `${row.model}${row.little_known ? " ‡" : ""}`);
  name.title = made.title;
  const value = element("span", "value", text(row[measure]));
  const said = element("span", "unseen", `${interval}${little}`);
  const byPeers = order !== "rank" && Number.isFinite(row.interaction);
  const delta = !before ? element("span", "change") : byPeers ? amongPeers(row) : ranksMoved(row, before);
  value.append(said);
  made.append(element("span", "rank", rankText(row)), name, bar(row, before, measure, onScale), value, delta);
  return made;
}

// Draws `view.board` into the list; returns how many rows there are in all.
export function draw(list, view) {
  const { board, overall, measure, order, find, all } = view;
  const before = new Map((overall?.leaderboard ?? []).map((row) => [row.model, row]));
  let rows = board.leaderboard;
  const apartLast = (a, b) => (a.grounded === false) - (b.grounded === false);
  const peers = (row) => row.interaction ?? 0;
  if (order === "gain") rows = [...rows].sort((a, b) => apartLast(a, b) || peers(b) - peers(a));
  if (order === "loss") rows = [...rows].sort((a, b) => apartLast(a, b) || peers(a) - peers(b));
  const wanted = find.trim().toLowerCase();
  if (wanted) rows = rows.filter((row) => row.model.toLowerCase().includes(wanted));
  const shown = all || wanted ? rows : rows.slice(0, top());
  const onScale = scale(board.leaderboard, before, measure);
  const items = shown.map((row) => item(row, before.get(row.model), view, onScale));
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
