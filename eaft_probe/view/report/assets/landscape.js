// The landscape, brushed: exact counts of every token by cell, and the tokens that can be listed.

const LISTED = 60; // tokens to begin with
let land, tokens, counts, conflictCounts, everything;

// Of the scan that is shown.
function readLandscape() {
  land = report.landscape;
  tokens = report.tokens.rows.map((row) =>
    Object.fromEntries(report.tokens.names.map((name, i) => [name, row[i]])));
  [counts, conflictCounts] = [dense(land.counts), dense(land.conflicts)];
  everything = { x0: 0, x1: land.columns, y0: 0, y1: land.rows };
}

function dense(sparse) {
  const cells = new Float64Array(land.rows * land.columns);
  for (let i = 0, at = 0; i < sparse.length; i += 2) cells[(at += sparse[i])] = sparse[i + 1];
  return cells;
}

// --- the region: whole cells, so that its counts are exact ---

const state = { region: null, listed: LISTED, view: null, dragging: false };

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
  byId("preset").textContent = ""; // of a button, which sets it
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
  const only = byId("only-conflicts").checked;
  const all = inRegion(counts, state.region), conflicts = inRegion(conflictCounts, state.region);
  const { prob, entropy } = bounds(state.region);
  const where = `prob ${number(prob[0])} to ${number(prob[1])}, ` +
    `entropy ${number(entropy[0])} to ${number(entropy[1])} nats`;
  const total = counted(report.tokens.of, "token");
  byId("count").textContent = only
    ? `${counted(conflicts, "conflict")} of ${total} (${percent(conflicts, report.tokens.of)}): ${where}`
    : `${whole(all)} of ${total} (${percent(all, report.tokens.of)}), ${amongThem(conflicts)}: ${where}`;
  showList(only ? conflicts : all, only);
  say(byId("count").textContent);
}

const amongThem = (n) =>
  n === 0 ? "none of them a conflict" : `${whole(n)} of them ${n === 1 ? "a conflict" : "conflicts"}`;

// --- the tokens in it ---

function showList(total, only) {
  const search = byId("token-search").value;
  const here = tokens.filter((t) => holds(state.region, t) && (!only || t.conflict));
  const matching = here.filter((t) =>
    (t.before + t.token + t.after).toLowerCase().includes(search.toLowerCase()));
  matching.sort((a, b) => a.prob - b.prob);
  const shown = matching.slice(0, state.listed);
  byId("tokens").replaceChildren(...shown.map(listItem));
  byId("more-tokens").hidden = shown.length === matching.length;
  const rest = shown.length < matching.length ? ` The first ${whole(shown.length)} are shown.` : "";
  byId("listed").textContent =
    listedInWords(matching.length, here.length, total, only ? "conflict" : "token", search) +
    (matching.length > 1 ? ", the least likely first." : ".") + rest;
}

// "4 of 134 conflicts contain “monoxide”", "1 conflict contains “monoxide”", "No token here".
function listedInWords(matching, here, total, noun, search) {
  if (total === 0) return `No ${noun} here`;
  const onPage = here < total ? ` on this page (of ${whole(total)})` : "";
  if (!search) return `${counted(here, noun)}${onPage}`;
  const some = matching === 0 ? `None of ${counted(here, noun)}`
    : here === 1 ? counted(1, noun) : `${whole(matching)} of ${counted(here, noun)}`;
  return `${some}${onPage} ${matching > 1 ? "contain" : "contains"} “${search}”`;
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
    ["Confident conflicts", inBox(report.rule) ? region(...box) : everything, true,
      "The model was sure of something else."],
    // Above 1/2 no other token can be likelier.
    ["Sure and right", region([Math.max(0.5, 1 - box[0][1]), 1], box[1]), false,
      "The model was sure of the label: there is little to learn."],
    ["At a loss", region(box[0], [Math.max(3, sure), most]), false,
      "The model held much for possible, and the label for unlikely."],
    ["Everything", everything, false, "All tokens of the scan."],
  ];
}

function fromInputs(event) {
  const value = (id) => byId(id).valueAsNumber;
  const prob = [value("prob-from"), value("prob-to")];
  const entropy = [value("entropy-from"), value("entropy-to")];
  if (![...prob, ...entropy].some(Number.isNaN)) choose(region(prob, entropy), event.target);
}

function startLandscape() {
  byId("region").addEventListener("submit", (event) => event.preventDefault());
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
  themed.push(draw);
}

function showLandscape() {
  readLandscape();
  byId("presets").replaceChildren(...presets().map(([label, chosen, only, meaning]) =>
    button(label, () => {
      byId("only-conflicts").checked = only;
      choose(chosen);
      byId("preset").textContent = meaning;
    })));
  byId("entropy-to").max = byId("entropy-from").max = land.rows / land.entropy_cells;
  byId("token-search").value = "";
  byId("only-conflicts").checked = false;
  byId("caption").textContent = caption();
  choose(everything);
}

function caption() {
  const { of, of_conflicts: all, conflicts } = report.tokens;
  const most = land.vocab_size ? " and the most (dashed)" : "";
  const box = inBox(report.rule) ? " Box: the conflict rule." : "";
  return "Every token is counted; the colour shows how many there are, on a log scale." +
    `${box} Lines: the least (solid)${most} entropy possible at each probability. ` +
    `${counted(tokens.length, "token")} can be listed, spread evenly over the landscape: ` +
    `${whole(conflicts)} of ${counted(all, "conflict")} and ${whole(tokens.length - conflicts)} of ` +
    `${counted(of - all, "other")}. Bounds snap to cells of 1/256 in prob and 1/32 nat in entropy.`;
}
