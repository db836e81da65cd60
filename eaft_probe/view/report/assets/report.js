// The page's frame: payload, elements, theme, tooltip, tables. Text enters by textContent alone.

const page = JSON.parse(document.getElementById("payload").textContent);
let report = page.scans[0]; // the scan that is shown: every section but those that compare
const byId = (id) => document.getElementById(id);
const whole = (n) => n.toLocaleString("en");
const counted = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
const number = (x) =>
  x === null || x === undefined ? "–"
    : x !== 0 && Math.abs(x) < 0.001 ? tiny(x)
    : String(Number(x.toPrecision(3)));
// 0.0000012 as people write it: 1.2×10⁻⁶.
function tiny(x) {
  const [mantissa, power] = x.toExponential(1).split("e");
  return `${mantissa}×10${[...power].map((c) => SUPERSCRIPT[c]).join("")}`;
}
const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷",
  8: "⁸", 9: "⁹" };
const percent = (part, all) => `${number((100 * part) / all)}%`;

// element("td", { class: "n" }, "12", child): attributes are our own, never the data's.
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null));
  return node;
}

function button(label, action, attributes = {}) {
  const node = element("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", action);
  return node;
}

// White space that is a token, or begins or ends a quoted one, is drawn.
const drawn = (spaces) => spaces.replace(/ /g, "␣").replace(/\t/g, "⇥").replace(/\n/g, "↵");
const marked = (text) => text.replace(/^\s+|\s+$/g, drawn);

// --- what a screen reader hears: the last message, once nothing changes any more ---

let speaking;
function say(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => (byId("live").textContent = text), 400);
}

// --- theme: the system's, until the reader presses the button ---

const SEQUENCE = ["--seq-0", "--seq-1", "--seq-2", "--seq-3"];
const themed = []; // what draws in colours of its own
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

function showTheme() {
  byId("theme").textContent = isDark() ? "Light theme" : "Dark theme";
  themed.forEach((draw) => draw());
}

function startTheme() {
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  systemDark.addEventListener("change", showTheme);
  addEventListener("beforeprint", () => {
    root.dataset.printing = "";
    themed.forEach((draw) => draw()); // in microtasks: done before the browser goes on
  });
  addEventListener("afterprint", () => {
    delete root.dataset.printing;
    showTheme();
  });
  showTheme();
}

const printing = () => root.dataset.printing !== undefined;

// The colour that a custom property stands for in this theme.
function colour(name) {
  const probe = document.body.appendChild(element("span"));
  probe.style.color = `var(${name})`;
  const computed = getComputedStyle(probe).color;
  probe.remove();
  return computed;
}

// --- the tooltip, for pointer and focus alike ---

function showTip(box, rows, title) {
  const tip = byId("tip");
  tip.replaceChildren(title ? element("p", { class: "tip-title" }, title) : "");
  const list = tip.appendChild(element("dl"));
  for (const [name, value] of rows) list.append(element("dt", {}, name), element("dd", {}, value));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), innerWidth - width - 8);
  const below = box.bottom + 8 + height < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// --- tables ---

function table(names, rows, caption) {
  const head = element("tr", {}, ...names.map((name, i) =>
    element("th", { scope: "col", class: isNumber(rows[0][i]) ? "n" : null }, name)));
  const body = rows.map((row) => element("tr", {}, ...row.map(cell)));
  return element("table", {},
    caption ? element("caption", {}, caption) : null,
    element("thead", {}, head), element("tbody", {}, ...body));
}

// "12", "-3%", "+1.0×10⁻⁴", "12 (3%)", "1 to ∞", and what stands where there is no number.
const NUMBER = "[-+]?[\\d.,∞]+(?:×10[⁻⁰¹²³⁴-⁹]+)?%?";
const NUMERIC = new RegExp(`^(?:${NUMBER}(?: \\(${NUMBER}\\)| to ${NUMBER})?|–)$`);
const isNumber = (value) => typeof value === "string" && NUMERIC.test(value);

function cell(value) {
  if (value instanceof Node) return element("td", {}, value);
  return element("td", isNumber(value) ? { class: "n" } : {}, value);
}

const quoted = (text) => element("code", {}, text === null ? "–" : marked(text));

function showHeadline() {
  const title = `${report.data} under ${report.model}`;
  const rule = `Confident conflict: ${report.rule.text}`;
  if (page.data_sets) {
    byId("short-title").textContent = `In short: ${title}`;
    byId("short-rule").textContent = rule;
  } else {
    byId("title").textContent = title;
    document.title = `${title} · eaft-probe report`;
    byId("rule").textContent = rule;
  }
  byId("notices").replaceChildren(...report.notices.map((n) => element("p", { class: "notice" }, n)));
  byId("headline").replaceChildren(...report.headline.map(headlined));
}

const headlined = ({ figure, label, detail }) =>
  element("li", {},
    element("strong", {}, figure), " ",
    element("span", {}, label), " ",
    element("small", {}, detail));

function showPairs() {
  const { rows, of } = report.pairs;
  byId("pairs-note").textContent = rows.length
    ? `The token in the data, and what the model was sure of instead: the ${whole(rows.length)} ` +
      `commonest of ${counted(of, "different pair")}, each with up to three places.`
    : "No token of this scan is a confident conflict under its rule.";
  byId("pairs").hidden = !rows.length;
  if (rows.length) byId("pairs").replaceChildren(table(
    ["label", "the model's choice", "conflicts", "mean prob", "mean top1_prob", "in context"],
    rows.map((p) => [quoted(p.token), quoted(p.top1), whole(p.conflicts), number(p.prob),
      number(p.top1_prob), places(p)])));
}

function places(pair) {
  if (!pair.places.length) return "none of these tokens was kept";
  const items = pair.places.map((place) =>
    element("li", {},
      context(place.before.slice(-60), pair.token, place.after.slice(0, 60), true), " ",
      exampleButton(place)));
  const summary = element("summary", {}, context(
    pair.places[0].before.slice(-24), pair.token, pair.places[0].after.slice(0, 24), true));
  return element("details", {}, summary, element("ul", { class: "places" }, ...items));
}

// A token in its text, on one line; the space before a word stays outside the word's box.
function context(before, token, after, conflict) {
  const flat = (text) => text.replace(/\s+/g, " ");
  const space = token.trim() ? token.match(/^\s*/)[0] : "";
  return element("span", { class: "context" }, flat(before + space),
    element("mark", conflict ? { class: "conflict" } : {}, marked(token.slice(space.length))),
    flat(after));
}

function showGroups() {
  byId("groups").replaceChildren(...report.groups.map((g) => table(g.names, g.rows, g.title)));
}

function showProvenance() {
  byId("sources").replaceChildren(...report.provenance.map(([title, rows]) =>
    element("section", {},
      element("h3", {}, title),
      element("dl", { class: "facts" },
        ...rows.flatMap(([k, v]) => [element("dt", {}, k), element("dd", {}, v)])))));
}

function showScan(index) {
  report = page.scans[index];
  openExamples(); // first: the others link to examples
  showHeadline();
  showForecast();
  showPairs();
  showGroups();
  showProvenance();
  showLandscape();
}

function start() {
  startLandscape();
  startExamples();
  showScan(0);
  if (page.data_sets) showDataSets(page.data_sets);
  if (page.against) showAgainst(page.against);
  themed.push(drawForecast);
  startTheme();
}

document.addEventListener("DOMContentLoaded", start);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
// The numbers of a focused token stay with it while the page scrolls to it.
document.addEventListener("scroll", () => {
  const focused = document.activeElement.closest("[data-i]");
  if (focused && !byId("tip").hidden) showNumbers(focused);
  else hideTip();
}, { passive: true });
