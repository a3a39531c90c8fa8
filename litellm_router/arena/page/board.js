// The board: rank, win rate with its interval, and how many votes a model had.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const percent = (x) => `${(100 * x).toFixed(0)}%`;

function bar(row) {
  const track = element("div", "track");
  track.setAttribute("aria-hidden", "true");
  const fill = element("div", "fill");
  fill.style.width = `${100 * row.win_rate}%`;
  track.append(fill);
  if (Number.isFinite(row.win_rate_low)) {
    const range = element("div", "range");
    range.style.left = `${100 * row.win_rate_low}%`;
    range.style.width = `${100 * (row.win_rate_high - row.win_rate_low)}%`;
    track.append(range);
  }
  return track;
}

function line(row, seen) {
  const made = element("tr", seen.includes(row.model) ? "seen" : "");
  const ranks = row.rank_low === row.rank_high ? [row.rank_low ?? "–"] : [row.rank_low, row.rank_high]; // none, before two votes
  const shown = element("td", "barcell");
  shown.append(bar(row));
  const rate = element("td", "number", percent(row.win_rate));
  if (Number.isFinite(row.win_rate_low)) rate.append(" ", element("small", "", `${(100 * row.win_rate_low).toFixed(0)}–${percent(row.win_rate_high)}`));
  made.append(element("td", "", ranks.join("–")), element("td", "model", row.model), shown, rate);
  made.append(element("td", "number votes-column", String(row.votes)));
  return made;
}

export function draw(body, board, seen) {
  body.replaceChildren(...board.leaderboard.map((row) => line(row, seen)));
}
