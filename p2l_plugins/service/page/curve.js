// The cost–quality curve: every candidate, the hull between them, the budget, and what was chosen.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 250;
const PAD = { left: 38, right: 8, top: 18, bottom: 30 };

function make(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// USD for a thousand requests: of one it is mostly zeros.
export function dollars(cost) {
  const x = 1000 * cost;
  if (x === 0) return "$0";
  return `$${x.toFixed(Math.min(6, Math.max(x < 1000 ? 2 : 0, 1 - Math.floor(Math.log10(x)))))}`;
}

// Budgets lie between the cheapest and the dearest candidate: on a logarithmic scale, unless one is free.
export function budgetScale(costs) {
  const [low, high] = [Math.min(...costs), Math.max(...costs)];
  const logarithmic = low > 0 && high / low > 4;
  const to = logarithmic ? Math.log : (x) => x;
  const back = logarithmic ? Math.exp : (x) => x;
  const span = to(high) - to(low) || 1;
  return {
    share: (cost) => (to(Math.min(high, Math.max(low, cost))) - to(low)) / span,
    cost: (share) => (share <= 0 ? low : share >= 1 ? high : back(to(low) + share * span)),
  };
}

function ticks(low, high) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((size) => (high - low) / size <= 4) ?? 1;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + 1e-9; x += step) found.push(x);
  return found;
}

// Puts a name beside its point where it hides no other name or point; leaves it out where there is no such place.
function label(svg, width, point, x, y, taken, picked) {
  const long = point.model.length * (picked ? 6.9 : 6.3);
  for (const [dx, dy] of [[6, 20], [6, -10], [16, 7], [6, 34], [6, -24], [6, 48]]) {
    for (const anchor of x > width / 2 ? ["end", "start", "middle"] : ["start", "end", "middle"]) {
      const left = x - { start: -dx, middle: long / 2, end: long + dx }[anchor];
      const box = { left, right: left + long, top: y + dy - 11, bottom: y + dy + 3 };
      const free = taken.every((other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
      if (!free || box.left < PAD.left || box.right > width || box.top < 0 || box.bottom > HEIGHT - PAD.bottom) continue;
      taken.push(box);
      const placed = { x: anchor === "middle" ? x : anchor === "start" ? x + dx : x - dx, y: y + dy, "text-anchor": anchor };
      svg.append(make("text", { ...placed, class: picked ? "name picked" : "name" }, point.model));
      return;
    }
  }
}

// The curve of a decision of /v1/route, under a budget in USD, in so many pixels of width.
export function curve(decision, budget, width) {
  const costs = decision.models.map((row) => row.cost);
  const values = decision.models.map((row) => row.value);
  const scale = budgetScale(costs);
  const room = 0.12 * (Math.max(...values) - Math.min(...values)) || 0.05;
  const [low, high] = [Math.max(0, Math.min(...values) - room), Math.min(1, Math.max(...values) + room)];
  const x = (cost) => PAD.left + 8 + scale.share(cost) * (width - PAD.left - PAD.right - 16);
  const y = (value) => PAD.top + (1 - (value - low) / (high - low)) * (HEIGHT - PAD.top - PAD.bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const aim = decision.objective === "usable" ? "P(usable)" : "win rate";
  svg.append(make("title", {}, `Cost against ${aim} of ${costs.length} models`));
  for (const value of ticks(low, high)) {
    svg.append(make("line", { x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value), class: "axis" }));
    svg.append(make("text", { x: PAD.left - 6, y: y(value) + 4, "text-anchor": "end" }, `${Math.round(100 * value)}%`));
  }
  const ends = [Math.min(...costs), Math.max(...costs)];
  svg.append(make("text", { x: x(ends[0]), y: HEIGHT - 8 }, dollars(ends[0])));
  svg.append(make("text", { x: (PAD.left + width) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "cost of 1,000 requests"));
  svg.append(make("text", { x: x(ends[1]), y: HEIGHT - 8, "text-anchor": "end" }, dollars(ends[1])));

  // between two corners the mean value is linear in the mean cost, which a logarithmic axis bends
  const points = [];
  decision.curve.forEach((corner, i) => {
    const next = decision.curve[i + 1];
    const steps = next ? 24 : 1;
    for (let k = 0; k < steps; k += 1) {
      const share = k / steps;
      const cost = next ? corner.cost + share * (next.cost - corner.cost) : corner.cost;
      const value = next ? corner.value + share * (next.value - corner.value) : corner.value;
      points.push([x(cost), y(value)]);
    }
  });
  const last = decision.curve[decision.curve.length - 1];
  points.push([x(ends[1]), y(last.value)]);
  const line = points.map((point) => point.map((number) => number.toFixed(1)).join(",")).join(" ");
  svg.append(make("polyline", { points: line, class: "hull" }));
  svg.append(make("line", { x1: x(budget), x2: x(budget), y1: PAD.top - 6, y2: HEIGHT - PAD.bottom, class: "limit" }));

  const corners = new Set(decision.curve.map((corner) => corner.model));
  const ordered = [...decision.models].sort((a, b) => a.share - b.share || corners.has(a.model) - corners.has(b.model));
  for (const row of ordered) {
    const kind = row.share > 0 ? "dot picked" : corners.has(row.model) ? "dot corner" : "dot";
    const dot = make("circle", { cx: x(row.cost), cy: y(row.value), r: corners.has(row.model) || row.share > 0 ? 5 : 4, class: kind });
    dot.append(make("title", {}, `${row.model}: ${(100 * row.value).toFixed(1)}%, ${dollars(row.cost)}`));
    svg.append(dot);
  }
  svg.append(make("circle", { cx: x(decision.expected_cost), cy: y(decision.value), r: 9, class: "here" }));
  const around = ([cx, cy], r) => ({ left: cx - r, right: cx + r, top: cy - r, bottom: cy + r });
  const taken = [...ordered.map((row) => around([x(row.cost), y(row.value)], 5)), ...points.map((point) => around(point, 1))];
  for (const row of [...ordered].reverse()) {
    if (corners.has(row.model) || row.share > 0) label(svg, width, row, x(row.cost), y(row.value), taken, row.share > 0);
  }
  return svg;
}
