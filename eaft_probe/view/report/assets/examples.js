// Examples: whole texts, every token coloured by a chosen column, its numbers on hover and focus.

let examples; // of the scan that is shown
const AT_ONCE = 10; // examples to begin with: a long one has thousands of tokens
const STEPS = 5; // shades, from plain to strong
// Strong where it is low.
const REVERSED = ["prob", "logprob", "top1_prob", "concentration", "retain_alignment",
  "eval_alignment"];
const EDGES = { prob: [0.01, 0.05, 0.2, 0.5], rank: [1, 2, 10, 100], entropy: [0.5, 1, 2, 4] };
const SORTS = { // besides the row scores
  "number of conflicts": (e) => -e.conflicts,
  "order of the data": (e) => e.example,
};
const titleOf = (place) =>
  `example ${place.example}` + (place.turn === undefined ? "" : `, turn ${place.turn}`);
const sameExample = (a, b) => a.example === b.example && a.turn === b.turn;
const picked = { shown: AT_ONCE, pinned: null };

// --- colour ---

const edges = new Map(); // column → STEPS − 1 rising bounds

function edgesOf(name) {
  if (!edges.has(name)) edges.set(name, EDGES[name] ?? fifths(name));
  return edges.get(name);
}

function fifths(name) {
  const values = examples.flatMap((e) => e.columns[name]).filter((v) => v !== null);
  values.sort((a, b) => a - b);
  return [1, 2, 3, 4].map((i) => values[Math.floor((i * values.length) / STEPS)] ?? 0);
}

function shade(name, value) {
  if (value === null) return 0;
  const step = edgesOf(name).filter((edge) => value >= edge).length;
  return REVERSED.includes(name) ? STEPS - 1 - step : step;
}

function paint(card) {
  const name = byId("colour").value;
  for (const span of card.querySelectorAll("[data-i]")) {
    span.dataset.shade = shade(name, card.example.columns[name][span.dataset.i]);
  }
}

function showLegend() {
  const name = byId("colour").value;
  const column = report.columns.find((c) => c.name === name);
  const bounds = edgesOf(name).map(number);
  const texts = [`below ${bounds[0]}`, ...bounds.slice(1).map((b, i) => `${bounds[i]} to ${b}`),
    `from ${bounds.at(-1)}`];
  const unmarked =
    examples.some((e) => e.held < e.trained) ? "not trained, or not kept" : "not trained";
  const steps = texts.map((text, i) => [REVERSED.includes(name) ? STEPS - 1 - i : i, text]);
  byId("legend").replaceChildren(
    element("span", {}, element("b", {}, name), column.unit ? `, ${column.unit}: ` : ": "),
    ...steps.map(([step, text]) => element("span", { class: "swatch", "data-shade": step }, text)),
    element("span", { class: "swatch conflict" }, "conflict"),
    element("span", { class: "swatch gap" }, unmarked),
    element("span", { class: "muted meaning" }, column.meaning +
      (EDGES[name] ? "" : "; each shade holds a fifth of the tokens below")));
}

// --- one example ---

// Of a scan that kept only some of its tokens: `held` of the `trained`.
const tokensOf = ({ held, trained }) =>
  held < trained ? `${whole(held)} kept of ${counted(trained, "token")}` : counted(trained, "token");

function card(example) {
  const heading = titleOf(example).replace("e", "E");
  const label = `${heading}: ${counted(example.conflicts, "conflict")} in ${tokensOf(example)}`;
  const text = element("p", { class: "text", role: "group", "aria-label": `Text of ${label}` });
  const flags = new Set(example.flags);
  example.text.forEach((piece, i) =>
    text.append(gap(example.gaps[i]), ...token(piece, i, flags.has(i))));
  text.append(gap(example.gaps.at(-1)));
  text.querySelector(flags.size ? ".conflict" : "[data-i]").tabIndex = 0;
  const article = element("article", { "aria-label": label },
    element("h3", {}, heading, example.key ? element("code", {}, example.key) : null),
    element("p", { class: "muted" }, facts(example)), text, conflictTable(example));
  article.example = example;
  paint(article);
  return article;
}

function facts(example) {
  const { held, conflicts, nll, text } = example;
  const kept = report.examples.kept.map((name, i) => `${name} ${example.kept[i]}`);
  return [
    `${counted(conflicts, "conflict")} in ${tokensOf(example)} (${percent(conflicts, held)})`,
    `mean nll ${number(nll)} nats`, scored(example), ...kept,
    text.length < held ? `${whole(text.length)} of its tokens shown` : null,
  ].filter(Boolean).join(" · ");
}

// The score that orders the examples, unless it is said anyway.
function scored(example) {
  const score = sortScore();
  if (!score || ["conflict_share", "mean_nll"].includes(score.name)) return null;
  return `${score.name} ${number(example.scores[score.name])} ${score.unit}`.trim();
}

function gap(text) {
  if (typeof text === "string") return element("span", { class: "gap" }, text);
  const [before, hidden, after] = text;
  return element("span", { class: "gap" }, before,
    element("i", {}, ` … ${whole(hidden)} characters not shown … `), after);
}

// The space before a word stays outside its box; white space alone is drawn and kept.
function token(text, i, conflict) {
  const attributes = { "data-i": i, tabindex: -1, class: conflict ? "conflict" : null };
  if (!text.trim()) return [element("span", attributes, drawn(text)), text.replace(/[^\n]/g, "")];
  const [, before, word] = text.match(/^(\s*)([^]*)$/);
  return [before, element("span", attributes, word)];
}

function conflictTable({ flags, text, columns }) {
  if (!flags.length) return "";
  const of = (name, i) => columns[name]?.[i] ?? null;
  const rows = flags.map((i) => [quoted(text[i]), number(of("prob", i)), quoted(of("top1", i)),
    number(of("top1_prob", i)), number(of("entropy", i)), number(of("rank", i))]);
  const names = ["label", "prob", "the model's choice", "top1_prob", "entropy", "rank"];
  return element("details", {},
    element("summary", {}, `Its ${flags.length > 1 ? `${flags.length} conflicts` : "conflict"} ` +
      "as a table"),
    table(names, rows));
}

// --- which are shown ---

function matching() {
  const search = byId("example-search").value.toLowerCase();
  const kept = byId("kept").value;
  const matches = examples.filter((e) =>
    (!byId("with-conflicts").checked || e.conflicts) &&
    (!kept || isKept(e, kept)) &&
    (!search || `${e.key} ${wording(e)}`.toLowerCase().includes(search)));
  const order = sortOrder();
  return matches.sort((a, b) => compared(order(a), order(b)) || a.example - b.example ||
    a.turn - b.turn);
}

const compared = (a, b) => (a === b ? 0 : a - b); // two infinite ones are equal

const sortScore = () => report.examples.scores.find((s) => s.name === byId("sort").value);

// Smallest first; what has no score comes last.
function sortOrder() {
  const score = sortScore();
  if (!score) return SORTS[byId("sort").value];
  return (e) => e.scores[score.name] === null ? Infinity
    : e.scores[score.name] * (score.falls ? -1 : 1);
}

function isKept(example, choice) {
  const [column, value] = JSON.parse(choice);
  return example.kept[column] === value;
}

const wording = (e) =>
  e.text.map((piece, i) => [e.gaps[i]].flat().join(" ") + piece).join("") +
  [e.gaps.at(-1)].flat().join(" ");

function showSorting() {
  const score = sortScore();
  byId("sorting").textContent = score
    ? `Sorted by ${score.name}: ${score.meaning}; the ${score.falls ? "largest" : "smallest"} first.`
    : "";
}

function showExamples() {
  hideTip();
  showSorting();
  const matches = matching();
  const shown = matches.slice(0, picked.shown);
  const first = picked.pinned ? [picked.pinned] : [];
  const others = shown.filter((e) => e !== picked.pinned);
  byId("cards").replaceChildren(...[...first, ...others].map(card));
  byId("more-examples").hidden = matches.length <= picked.shown;
  const noun = report.examples.noun; // each is a row of the data, or one of its turns
  const some = `${whole(matches.length)} of ${counted(examples.length, noun)}`;
  const rest = shown.length < matches.length ? ` The first ${whole(shown.length)} are shown.` : "";
  byId("matching").textContent = matches.length === 0 ? `No ${noun} matches.`
    : matches.length === examples.length ? `${counted(examples.length, noun)}.${rest}`
    : `${some} ${matches.length === 1 ? "matches" : "match"}.${rest}`;
  say(byId("matching").textContent);
}

function exampleButton(place) {
  const example = examples.find((e) => sameExample(e, place));
  if (!example) return element("span", { class: "muted" }, titleOf(place));
  return button(titleOf(place), () => openExample(example, place.position), { class: "link" });
}

function openExample(example, position) {
  picked.pinned = example;
  showExamples();
  const card = byId("cards").firstElementChild;
  const i = Math.max(0, example.columns.position.indexOf(position));
  focusToken(card.querySelector(`[data-i="${i}"]`));
}

// --- pointing and moving ---

function showNumbers(span) {
  const { columns, text, flags } = span.closest("article").example;
  const i = Number(span.dataset.i);
  const of = (name) => columns[name]?.[i] ?? null;
  const rows = [
    ["label", marked(text[i])],
    ["model's choice", of("top1") === null ? "–" : marked(of("top1"))],
    ["prob", number(of("prob"))],
    ["top1_prob", number(of("top1_prob"))],
    ["entropy", `${number(of("entropy"))} nats`],
    ["rank", of("rank") === null ? "–" : whole(of("rank"))],
  ];
  const name = byId("colour").value;
  if (!rows.some(([title]) => title === name)) rows.push([name, number(of(name))]);
  for (const old of document.querySelectorAll("[aria-describedby=tip]")) {
    old.removeAttribute("aria-describedby");
  }
  span.setAttribute("aria-describedby", "tip");
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  showTip(box, rows, flags.includes(i) ? "confident conflict" : "");
}

// One token of a text is in the tab order; the arrows move it.
function focusToken(span) {
  span.parentElement.querySelector("[tabindex='0']").tabIndex = -1;
  span.tabIndex = 0;
  span.focus();
}

function moveFocus(event) {
  const from = event.target.closest("[data-i]");
  if (!from || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = [...from.parentElement.querySelectorAll("[data-i]")];
  const conflicts = all.filter((s) => s.classList.contains("conflict"));
  const i = Number(from.dataset.i);
  const to = {
    ArrowRight: () => all[i + 1], ArrowLeft: () => all[i - 1],
    ArrowDown: () => conflicts.find((s) => Number(s.dataset.i) > i),
    ArrowUp: () => conflicts.findLast((s) => Number(s.dataset.i) < i),
    Home: () => all[0], End: () => all.at(-1),
  }[event.key];
  if (!to) return;
  event.preventDefault();
  const span = to();
  if (span) focusToken(span);
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, label]) => element("option", { value }, label)));
}

function keptChoices() {
  return report.examples.kept.flatMap((name, column) =>
    [...new Set(examples.map((e) => e.kept[column]))].sort().map((value) =>
      [JSON.stringify([column, value]), `${name}: ${value.slice(0, 60)}`]));
}

function startExamples() {
  for (const id of ["sort", "kept", "example-search", "with-conflicts"]) {
    byId(id).addEventListener("input", () => {
      Object.assign(picked, { shown: AT_ONCE, pinned: null });
      showExamples();
    });
  }
  byId("choice").addEventListener("submit", (event) => event.preventDefault());
  byId("colour").addEventListener("input", () => {
    showLegend();
    for (const article of byId("cards").children) paint(article);
  });
  byId("more-examples").addEventListener("click", () => {
    picked.shown += AT_ONCE;
    showExamples();
  });
  const cards = byId("cards");
  const numbers = (event) => {
    const span = event.target.closest("[data-i]");
    if (span) showNumbers(span);
  };
  cards.addEventListener("mouseover", numbers);
  cards.addEventListener("focusin", numbers);
  cards.addEventListener("mouseout", hideTip);
  cards.addEventListener("focusout", hideTip);
  cards.addEventListener("keydown", moveFocus);
}

function openExamples() {
  const { rows, of, noun, kept, scores, complete } = report.examples;
  examples = rows;
  edges.clear();
  Object.assign(picked, { shown: AT_ONCE, pinned: null });
  options(byId("colour"), report.columns.map((c) => [c.name, c.name]));
  byId("colour").value = "prob";
  options(byId("sort"), [...scores.map((s) => s.name), ...Object.keys(SORTS)].map((n) => [n, n]));
  options(byId("kept"), [["", "all"], ...keptChoices()]);
  byId("kept-label").hidden = !kept.length;
  byId("example-search").value = "";
  byId("with-conflicts").checked = false;
  byId("examples-note").textContent = rows.length < of
    ? `On this page: ${whole(rows.length)} of ${counted(of, noun)}, among them the ` +
      `${whole(complete)} worst by each of the scores below.`
    : `On this page: all ${counted(of, noun)} of the scan.`;
  showLegend();
  showExamples();
}
