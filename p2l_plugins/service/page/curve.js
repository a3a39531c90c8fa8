// The cost–quality curve: every candidate, the hull between them, the budget, and what was chosen.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 250;
const PAD = { left: 38, right: 8, top: 18, bottom: 30 };
const REACH = 22; // pixels from which a pointer finds a point

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

// What /v1/route answers to a rule and a budget, from its answer without them: the values do not change with the budget.
export function decide(decision, rule, budget) {
  const chosen = { choice: {}, value: 0, expected_cost: 0 };
  const take = (point, share) => {
    chosen.choice[point.model] = share;
    chosen.value += share * point.value;
    chosen.expected_cost += share * point.cost;
  };
  if (rule === "cap") {
    const fits = decision.models.filter((row) => row.cost <= budget);
    take(fits.reduce((best, row) => (row.value > best.value || (row.value === best.value && row.cost < best.cost) ? row : best)), 1);
  } else {
    const after = decision.curve.findIndex((corner) => corner.cost > budget);
    const dear = after < 0 ? null : decision.curve[after];
    const fits = decision.curve.at(after < 0 ? -1 : after - 1);
    const share = dear ? (budget - fits.cost) / (dear.cost - fits.cost) : 0;
    take(fits, 1 - share);
    if (share > 0) take(dear, share);
  }
  return { ...decision, ...chosen, rule, budget, models: decision.models.map((row) => ({ ...row, share: chosen.choice[row.model] ?? 0 })) };
}

function ticks(low, high) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((size) => (high - low) / size <= 4) ?? 1;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + 1e-9; x += step) found.push(x);
  return found;
}

const pen = document.createElement("canvas").getContext("2d");

// Pixels of a name in the drawing.
function widthOf(name, picked) {
  pen.font = `${picked ? 650 : 400} 12px ${getComputedStyle(document.documentElement).fontFamily}`;
  return pen.measureText(name).width + 2;
}

// Puts a name beside its point where it hides no other name, no point and not the budget, and tells whether it did.
function label(svg, width, point, x, y, taken, picked) {
  const long = widthOf(point.model, picked);
  for (const [dx, dy] of [[6, 20], [6, -10], [16, 7], [6, 34], [6, -24], [6, 48], [6, -38], [6, 62], [40, 20], [40, -10]]) {
    for (const anchor of x > width / 2 ? ["end", "start", "middle"] : ["start", "end", "middle"]) {
      const left = x - { start: -dx, middle: long / 2, end: long + dx }[anchor];
      const box = { left, right: left + long, top: y + dy - 11, bottom: y + dy + 3 };
      const free = taken.every((other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
      if (!free || box.left < PAD.left || box.right > width || box.top < 0 || box.bottom > HEIGHT - PAD.bottom) continue;
      taken.push(box);
      const placed = { x: anchor === "middle" ? x : anchor === "start" ? x + dx : x - dx, y: y + dy, "text-anchor": anchor };
      svg.append(make("text", { ...placed, class: picked ? "name picked" : "name" }, point.model));
      return true;
    }
  }
  return false;
}

// Names the points: the one that a pointer is near, or that has the focus; arrow keys go from point to point by cost.
function naming(svg, dots) {
  const tip = document.createElement("p");
  tip.className = "point";
  tip.hidden = true;
  const near = make("circle", { r: 7, class: "near", visibility: "hidden" });
  svg.append(near);
  const show = (dot) => {
    tip.hidden = !dot;
    near.setAttribute("visibility", dot ? "visible" : "hidden");
    if (!dot) return;
    tip.textContent = dot.name;
    near.setAttribute("cx", dot.x);
    near.setAttribute("cy", dot.y);
    const width = svg.clientWidth || svg.viewBox.baseVal.width;
    tip.style.top = `${dot.y + (dot.y < 60 ? 12 : -12)}px`;
    tip.style.left = dot.x < width / 2 ? `${Math.max(0, dot.x - 20)}px` : "";
    tip.style.right = dot.x < width / 2 ? "" : `${Math.max(0, width - dot.x - 20)}px`;
    tip.classList.toggle("below", dot.y < 60);
  };
  const focused = () => dots.find((dot) => dot.element === document.activeElement) ?? null;
  const nearest = (event) => {
    const at = svg.getBoundingClientRect();
    const away = (dot) => Math.hypot(event.clientX - at.left - dot.x, event.clientY - at.top - dot.y);
    const best = dots.reduce((one, other) => (away(other) < away(one) ? other : one));
    return away(best) <= REACH ? best : null;
  };
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => show(nearest(event) ?? focused()));
  svg.addEventListener("pointerleave", () => show(focused()));
  for (const dot of dots) {
    dot.element.addEventListener("focus", () => show(dot));
    dot.element.addEventListener("blur", () => show(null));
  }
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -dots.length, End: dots.length }[event.key];
    if (event.key === "Escape") show(null);
    if (!steps) return;
    event.preventDefault();
    const from = dots.indexOf(focused());
    const to = dots[Math.min(dots.length - 1, Math.max(0, from + steps))];
    for (const dot of dots) dot.element.setAttribute("tabindex", dot === to ? "0" : "-1");
    to.element.focus();
  });
  return tip;
}

// The curve of a decision under a budget in USD, in so many pixels of width: the drawing, and the name of a point.
export function curve(decision, budget, width) {
  const costs = decision.models.map((row) => row.cost);
  const values = decision.models.map((row) => row.value);
  const scale = budgetScale(costs);
  const room = 0.12 * (Math.max(...values) - Math.min(...values)) || 0.05;
  const [low, high] = [Math.max(0, Math.min(...values) - room), Math.min(1, Math.max(...values) + room)];
  const x = (cost) => PAD.left + 8 + scale.share(cost) * (width - PAD.left - PAD.right - 16);
  const y = (value) => PAD.top + (1 - (value - low) / (high - low)) * (HEIGHT - PAD.top - PAD.bottom);
  const aim = decision.objective === "usable" ? "P(usable)" : "win rate";
  const title = `Cost against ${aim} of ${costs.length} models; arrow keys go from model to model`;
  const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": title });
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
  const limit = { left: x(budget) - 4, right: x(budget) + 4, top: PAD.top - 6, bottom: HEIGHT - PAD.bottom };
  svg.append(make("line", { x1: x(budget), x2: x(budget), y1: limit.top, y2: limit.bottom, class: "limit" }));

  const corners = new Set(decision.curve.map((corner) => corner.model));
  const ordered = [...decision.models].sort((a, b) => a.share - b.share || corners.has(a.model) - corners.has(b.model));
  const dots = ordered.map((row) => {
    const kind = row.share > 0 ? "dot picked" : corners.has(row.model) ? "dot corner" : "dot";
    const name = `${row.model}: ${(100 * row.value).toFixed(1)}%, ${dollars(row.cost)}`;
    const r = corners.has(row.model) || row.share > 0 ? 5 : 4;
    const element = make("circle", { cx: x(row.cost), cy: y(row.value), r, class: kind, role: "img", "aria-label": name, tabindex: "-1" });
    svg.append(element);
    return { element, name, x: x(row.cost), y: y(row.value), cost: row.cost };
  });
  dots[dots.length - 1].element.setAttribute("tabindex", "0"); // the chosen one
  svg.append(make("circle", { cx: x(decision.expected_cost), cy: y(decision.value), r: 9, class: "here" }));
  const around = ([cx, cy], r) => ({ left: cx - r, right: cx + r, top: cy - r, bottom: cy + r });
  const names = [limit, ...dots.map((dot) => around([dot.x, dot.y], 5))];
  const free = [...names, ...points.map((point) => around(point, 1))]; // off the hull, too
  for (const row of [...ordered].reverse()) {
    if (!corners.has(row.model) && row.share === 0) continue;
    const at = [x(row.cost), y(row.value)];
    if (label(svg, width, row, ...at, free, row.share > 0)) names.push(free.at(-1));
    else if (row.share > 0 && label(svg, width, row, ...at, names, true)) free.push(names.at(-1));
  }
  return [svg, naming(svg, dots.sort((a, b) => a.cost - b.cost))];
}
