// The landscape, brushed: exact counts of every token by cell, and the tokens that can be listed.

const land = report.landscape;
const tokens = report.tokens.rows.map((row) =>
  Object.fromEntries(report.tokens.names.map((name, i) => [name, row[i]])));
const counts = dense(land.counts);
const conflictCounts = dense(land.conflicts);
const LISTED = 60; // tokens to begin with

function dense(sparse) {
  const cells = new Float64Array(land.rows * land.columns);
  for (let i = 0, at = 0; i < sparse.length; i += 2) cells[(at += sparse[i])] = sparse[i + 1];
  return cells;
}

// --- the region: whole cells, so that its counts are exact ---

const everything = { x0: 0, x1: land.columns, y0: 0, y1: land.rows };
const state = { region: everything, listed: LISTED, view: null, dragging: false,
  drawn: Promise.resolve() };

const within = (lowest, value, highest) => Math.min(Math.max(value, lowest), highest);

// Bounds in prob and nats, snapped to the nearest edges of cells.
function region(prob, entropy) {
  const edges = (pair, scale, last) => {
    const [a, b] = pair.map((v) => within(0, Math.round(v * scale), last)).sort((l, r) => l - r);
    return a < b ? [a, b] : a < last ? [a, a + 1] : [a - 1, a];
  };
  const [x0, x1] = edges(prob, land.prob_cells, land.columns);
  const [y0, y1] = edges(entropy, land.entropy_cells, land.rows);
  return { x0, x1, y0, y1 };
}

function bounds({ x0, x1, y0, y1 }) {
  const { prob_cells: p, entropy_cells: h } = land;
  return { prob: [x0 / p, x1 / p], entropy: [y0 / h, y1 / h] };
}

function inRegion(cells, { x0, x1, y0, y1 }) {
  let sum = 0;
  for (let y = y0; y < y1; y++) {
    for (let x = x0; x < x1; x++) sum += cells[y * land.columns + x];
  }
  return sum;
}

function holds({ x0, x1, y0, y1 }, token) {
  const x = token.cell % land.columns, y = Math.floor(token.cell / land.columns);
  return x0 <= x && x < x1 && y0 <= y && y < y1;
}

// `source` is what the reader moved: it keeps what it shows, the others follow.
function choose(chosen, source) {
  state.region = chosen;
  state.listed = LISTED;
  const { prob, entropy } = bounds(chosen);
  const values = { "prob-from": prob[0], "prob-to": prob[1],
    "entropy-from": entropy[0], "entropy-to": entropy[1] };
  for (const [id, value] of Object.entries(values)) {
    if (source !== byId(id)) byId(id).value = Number(value.toFixed(3));
  }
  if (source !== state.view) moveBrush();
  showRegion();
}

function showRegion() {
  const count = inRegion(counts, state.region);
  const conflicts = inRegion(conflictCounts, state.region);
  const only = byId("only-conflicts").checked;
  const { prob, entropy } = bounds(state.region);
  const where = `prob ${number(prob[0])} to ${number(prob[1])}, ` +
    `entropy ${number(entropy[0])} to ${number(entropy[1])} nats`;
  byId("count").textContent = `${whole(count)} of ${counted(report.tokens.of, "token")} ` +
    `(${percent(count, report.tokens.of)}), ${whole(conflicts)} of them conflicts: ${where}`;
  showList(only ? conflicts : count, only);
  say(byId("count").textContent);
}

// --- the tokens in it ---

function showList(total, only) {
  const search = byId("token-search").value.toLowerCase();
  const matching = tokens.filter((t) =>
    holds(state.region, t) && (!only || t.conflict) &&
    (!search || (t.before + t.token + t.after).toLowerCase().includes(search)));
  matching.sort((a, b) => a.prob - b.prob);
  const shown = matching.slice(0, state.listed);
  byId("tokens").replaceChildren(...shown.map(listItem));
  byId("more-tokens").hidden = shown.length === matching.length;
  const noun = only ? "conflict" : "token";
  const searched = search ? `contain “${search}” and ` : "";
  byId("listed").textContent = total === 0
    ? `No ${noun} here.`
    : `${whole(matching.length)} of ${counted(total, noun)} ${searched}can be listed, the least ` +
      `likely first; ${whole(shown.length)} shown.`;
}

function listItem(token) {
  const numbers = [
    `prob ${number(token.prob)}`,
    `entropy ${number(token.entropy)}`,
    token.rank === null ? null : `rank ${whole(token.rank)}`,
  ].filter(Boolean).join(" · ");
  const choice = token.top1 === null || token.rank === 0 ? null
    : element("span", { class: "choice" }, "the model: ", quoted(token.top1),
      ` ${number(token.top1_prob)}`);
  return element("li", {},
    context(token.before, token.token, token.after, token.conflict),
    element("span", { class: "numbers" },
      token.conflict ? element("b", { class: "badge" }, "conflict") : null,
      element("span", {}, numbers), choice, exampleButton(token)));
}

// --- its controls ---

function presets() {
  const { entropy_below: sure = 0.509, prob_below: low = 0.2 } = report.rule; // or flagged by surprise
  const up = (v, scale) => Math.ceil(v * scale) / scale; // so that no conflict is left out
  const box = [[0, up(low, land.prob_cells)], [0, up(sure, land.entropy_cells)]];
  const most = land.rows / land.entropy_cells;
  return [
    [report.rule.surprise_above === undefined ? "Confident conflicts" : "Sure and wrong",
      region(...box), true],
    ["Sure and right", region([1 - box[0][1], 1], box[1]), false],
    ["At a loss", region(box[0], [Math.max(3, sure), most]), false],
    ["Everything", everything, false],
  ];
}

function fromInputs(event) {
  const value = (id) => byId(id).valueAsNumber;
  const prob = [value("prob-from"), value("prob-to")];
  const entropy = [value("entropy-from"), value("entropy-to")];
  if (![...prob, ...entropy].some(Number.isNaN)) choose(region(prob, entropy), event.target);
}

function startLandscape() {
  byId("presets").append(...presets().map(([label, chosen, only]) =>
    button(label, () => {
      byId("only-conflicts").checked = only;
      choose(chosen);
    })));
  byId("region").addEventListener("submit", (event) => event.preventDefault());
  byId("entropy-to").max = byId("entropy-from").max = land.rows / land.entropy_cells;
  for (const input of document.querySelectorAll("#region [type=number]")) {
    input.addEventListener("change", fromInputs);
  }
  byId("only-conflicts").addEventListener("change", showRegion);
  byId("token-search").addEventListener("input", showRegion);
  byId("more-tokens").addEventListener("click", () => {
    state.listed += LISTED;
    showRegion();
  });
  byId("chart").addEventListener("pointerdown", () => (state.dragging = true));
  addEventListener("pointerup", () => setTimeout(() => (state.dragging = false), 50));
  byId("enlarge").addEventListener("change", draw);
  byId("caption").textContent = caption();
  themed.push(draw);
  choose(everything);
}

function caption() {
  const { of, of_conflicts: all, conflicts } = report.tokens;
  const most = land.vocab_size ? " and the most (dashed)" : "";
  const box = report.rule.surprise_above === undefined ? " Box: the conflict rule." : "";
  return "Every token is counted; the colour shows how many there are, on a log scale." +
    `${box} Lines: the least (solid)${most} entropy possible at each probability. ` +
    `${counted(tokens.length, "token")} can be listed, spread evenly over the landscape: ` +
    `${whole(conflicts)} of ${counted(all, "conflict")} and ${whole(tokens.length - conflicts)} of ` +
    `${counted(of - all, "other")}. Bounds snap to cells of 1/256 in prob and 1/32 nat in entropy.`;
}
