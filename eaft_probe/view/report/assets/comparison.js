// The scan compared with another one: the numbers as `compare --json` has them, written as tables.

const signed = (x) => (x > 0 ? "+" : "") + number(x);
const share = (x) => (x === null ? "–" : percent(x, 1));
// JSON has no number for a ratio over 0, nor for an end that lies there: they are infinite.
const orInfinite = (x, is, write) => (x === null && is ? "∞" : write(x));

function ends(row, name, write) {
  const low = row[`${name}_low`], high = row[`${name}_high`];
  return low === null ? "–" : `${write(low)} to ${orInfinite(high, true, write)}`;
}

const HOW = {
  tokens: (summary) =>
    "A is the scan of this page, B the other one. A token is learned if its log-probability under " +
    `B is higher than under A by more than ${number(summary.delta)} nats, forgotten if it is lower ` +
    "by more than that, else unchanged. The groups of tokens and the conflict rule are A's.",
  distributions: (summary) =>
    "A is the scan of this page, B the other one. Their tokens are not matched with each other: " +
    "the comparison is of how frequent each kind of token is. A's conflict rule is used for both. " +
    (summary.intervals ? "Intervals contain 95% of the values over resampled examples, since the " +
      "tokens of one example are not independent draws." : ""),
};

function named(name, meanings) {
  return element("span", {}, element("b", {}, name.replaceAll("_", " ")), " ",
    element("span", { class: "muted" }, meanings[name]));
}

function scansTable({ summary, scans }) {
  const rows = ["a", "b"].map((side, i) => [side.toUpperCase(), summary[side].data,
    summary[side].model, whole(scans[i].examples), whole(scans[i].trained_tokens), scans[i].rule,
    summary[side].path]);
  return table(["", "data", "model", "examples", "tokens", "flagged by", "folder"], rows,
    "The two scans");
}

// --- token by token ---

const KINDS = ["learned", "unchanged", "forgotten"];

function movedTables({ summary, meanings, reference }) {
  const groups = Object.entries(summary.groups);
  const counts = groups.map(([name, row]) => [named(name, meanings), whole(row.tokens),
    ...KINDS.map((k) => row.tokens ? `${whole(row[k])} (${share(row[`${k}_share`])})` : "–")]);
  const kl = summary.groups.all.kl_reference === undefined ? [] : ["kl_reference"];
  const means = groups.map(([name, row]) => [element("b", {}, name),
    ...["nll", "entropy", "prob"].flatMap((n) => [number(row[`mean_${n}_a`]),
      number(row[`mean_${n}_b`]), row.tokens ? signed(row[`${n}_change`]) : "–"]),
    ...kl.map((n) => number(row[n]))]);
  const heads = ["nll A", "B", "B − A", "entropy A", "B", "B − A", "prob A", "B", "B − A"];
  const kls = kl.map(() => `KL(${reference} ‖ B)`);
  return [
    table(["group under A", "tokens", ...KINDS], counts, "Tokens by group"),
    table(["group under A", ...heads, ...kls], means, "Means by group: nats, and prob"),
    table(["under A", "resolved", "remaining", "new", "under B"],
      [["a", "resolved", "remaining", "new", "b"].map((n) => whole(summary[`conflicts_${n}`]))],
      "Confident conflicts"),
  ];
}

function mover(token) {
  const pair = (name) => `${number(token[`${name}_a`])} → ${number(token[`${name}_b`])}`;
  const choice = (side) => element("span", { class: "choice" }, `${side.toUpperCase()}: `,
    quoted(token[`top1_${side}`]), ` ${number(token[`top1_prob_${side}`])}`);
  const flags = ["A", "B"].filter((side) => token[`conflict_${side.toLowerCase()}`]);
  const conflict = flags.length ? `conflict under ${flags.join(" and ")}` : null;
  return element("li", {},
    context(token.before, token.token, token.after, token.conflict_a),
    element("span", { class: "numbers" },
      element("b", {}, `${signed(token.change)} nats`),
      element("span", {}, `prob ${pair("prob")}`), element("span", {}, `entropy ${pair("entropy")}`),
      conflict ? element("b", { class: "badge" }, conflict) : null,
      choice("a"), choice("b"), exampleButton(token)));
}

function movedList(title, kind, { summary, movers }) {
  const tokens = movers[kind];
  const text = tokens.length
    ? `The ${whole(tokens.length)} largest changes of ${counted(summary[kind], `${kind} token`)}, ` +
      "among all that are in both scans; next to them what each model would have said."
    : `No token is ${kind}.`;
  return element("div", {}, element("h3", {}, title), element("p", { class: "muted" }, text),
    tokens.length ? element("div", { class: "scroll", role: "region", "aria-label": title,
      tabindex: "0" }, element("ol", {}, ...tokens.map(mover))) : null);
}

// --- as distributions ---

function apartTables({ summary, meanings }) {
  const rows = Object.entries(summary.quantities).map(([name, row]) => {
    const write = name.endsWith("_share") ? share : number;
    const plus = (x) => (x > 0 ? "+" : "") + write(x);
    return [named(name, meanings),
      write(row.a), ends(row, "a", write), write(row.b), ends(row, "b", write),
      plus(row.difference), ends(row, "difference", plus),
      orInfinite(row.ratio, row.a > 0, number), ends(row, "ratio", number)];
  });
  return [table(["", "A", "95%", "B", "95%", "A − B", "95%", "A / B", "95%"], rows,
    "Shares and means; A / B says how many times as frequent")];
}

// --- the section ---

function showAgainst(against) {
  const { summary, figure } = against;
  const moved = summary.by === "tokens";
  byId("against").hidden = byId("against-link").hidden = false;
  byId("against-title").textContent = `Against ${against.scans[1].title}`;
  byId("against-said").textContent =
    `By their fingerprints, A and B are scans of ${summary.said}. ${HOW[summary.by](summary)}`;
  byId("against-notices").append(
    ...summary.notes.map((note) => element("p", { class: "notice" }, sentence(note))));
  byId("against-cards").append(...against.cards.map(headlined));
  byId("against-scans").append(scansTable(against));
  byId("against-tables").append(...(moved ? movedTables : apartTables)(against).map((table) =>
    element("div", { class: "wide", role: "region", tabindex: "0",
      "aria-label": table.caption.textContent }, table)));
  const { alt, width, height } = figure;
  byId("against-figure").append(element("img", { id: "against-picture", alt, width, height,
    src: `data:image/png;base64,${figure.png}` }));
  byId("against-caption").textContent = figure.caption;
  if (moved) {
    byId("against-movers").append(movedList("Worst forgotten", "forgotten", against),
      movedList("Best learned", "learned", against));
  }
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
