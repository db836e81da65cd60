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

// --- token by token, drawn ---

const at = ({ x, y }, across, up) =>
  ({ x: { ...x, field: across }, y: { ...y, field: up } });
const CELL_EDGES = { x2: { field: "prob_to" }, y2: { field: "entropy_to" } };

// A plane whose cells are coloured, and what stands over it.
function movesSpec({ summary, moves }, cells, color, description, ...over) {
  const high = Math.ceil(moves.cells.reduce((a, c) =>
    Math.max(a, c.entropy_to, c.tokens < moves.few ? 0 : c.mean_entropy_b), 1));
  const axes = planeAxes(high);
  return {
    ...chartFrame(PANEL), description,
    layer: [
      { data: { values: cells }, mark: { type: "rect", strokeWidth: 0 },
        encoding: { ...at(axes, "prob_from", "entropy_from"), ...CELL_EDGES, color,
          tooltip: ["tokens", "learned", "forgotten"].map((field) => ({ field })) } },
      boundsLayer(axes, moves.vocab_size),
      ruleLayer(axes, summary.rule, high),
      ...over.map((layer) => layer(axes)),
    ],
  };
}

function wentSpec(against) {
  const { cells, few } = against.moves;
  const values = cells.filter((c) => c.tokens >= few);
  const mark = { color: colour("--accent"), opacity: 1 };
  const most = cells.reduce((a, c) => Math.max(a, c.tokens), 2);
  return movesSpec(against, withShares(cells),
    { field: "tokens", type: "quantitative", legend: null,
      scale: { type: "log", domain: [1, most], range: ["--grey-0", "--grey-1"].map(colour) } },
    "Where the tokens lie by probability of the label and entropy under A, with a line from each " +
      "cell to their mean place under B.",
    (axes) => ({ data: { values }, mark: { type: "rule", strokeWidth: 1.75, ...mark },
      encoding: { ...at(axes, "mean_prob_a", "mean_entropy_a"),
        x2: { field: "mean_prob_b" }, y2: { field: "mean_entropy_b" } } }),
    (axes) => ({ data: { values }, mark: { type: "circle", size: 26, ...mark },
      encoding: at(axes, "mean_prob_b", "mean_entropy_b") }));
}

function netSpec(against) {
  const { cells, few } = against.moves;
  const values = withShares(cells.filter((c) => c.tokens >= few));
  const most = values.reduce((a, c) => Math.max(a, Math.abs(c.net)), 0.01);
  return movesSpec(against, values,
    { field: "net", type: "quantitative", title: "learned − forgotten",
      scale: { domain: [-most, 0, most], interpolate: "rgb", range: ["--forgotten", "--even", "--learned"].map(colour) },
      legend: { orient: "top", direction: "horizontal", gradientLength: 120, gradientThickness: 8,
        titleOrient: "left", format: ".0%", values: [-most, 0, most] } },
    "The share of the tokens that were learned less the share that were forgotten, by probability " +
      "of the label and entropy under A.");
}

const withShares = (cells) => cells.map((cell) => ({ ...cell,
  net: cell.learned_share - cell.forgotten_share,
  learned: share(cell.learned_share), forgotten: share(cell.forgotten_share) }));

function groupSpec({ summary }) {
  const groups = Object.entries(summary.groups).filter(([, row]) => row.tokens);
  const values = groups.flatMap(([group, row]) =>
    KINDS.map((kind, order) => ({ group, kind, order, share: row[`${kind}_share`] })));
  return {
    ...chartFrame(PANEL),
    description: "The shares learned, unchanged and forgotten by group; the tables have the numbers.",
    data: { values: values.map((v) => ({ ...v, "of the group": share(v.share) })) },
    mark: { type: "bar", height: { band: 0.6 } },
    encoding: {
      y: { field: "group", type: "nominal", sort: null, title: null, axis: { domain: false,
        ticks: false, labelColor: colour("--ink") } },
      x: { field: "share", type: "quantitative", title: "share of the group's tokens",
        axis: { format: "%", tickCount: 5 }, scale: { domain: [0, 1] } },
      order: { field: "order" },
      color: { field: "kind", type: "nominal", title: null,
        scale: { domain: KINDS, range: ["--learned", "--even", "--forgotten"].map(colour) },
        legend: { orient: "top" } },
      tooltip: ["group", "kind", "of the group"].map((field) => ({ field })),
    },
  };
}

const MOVES = [
  [wentSpec, "Where the tokens went", "A line leads from where the tokens of a cell lie under A to " +
    "a dot at their mean place under B. The grey shows how many there are. Lines also show " +
    "regression to the mean: of two unrelated models all point inwards."],
  [netSpec, "Learned or forgotten", "By the place under A: the share of a cell's tokens that were " +
    "learned less the share that were forgotten. Cells with few tokens are left blank."],
  [groupSpec, "By group", "Groups are those under A; the first table has the numbers."],
];

function showMoves(node, against) {
  node.replaceChildren(element("div", { class: "panels" }, ...MOVES.map(([spec, title, text]) => {
    const chart = element("div", { class: "chart" });
    themed.push(() => drawIn(chart, () => spec(against)));
    return element("figure", {}, element("h3", {}, title),
      element("p", { class: "muted" }, text), chart);
  })));
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

function showApart(node, { planes, scans, summary }) {
  showPlanes(node, planes.map((plane, i) => {
    const name = `${"AB"[i]}: ${scans[i].title}`;
    return { plane, name, heading: element("figcaption", {}, name) };
  }), summary.rule);
}

// --- the section ---

function showAgainst(against) {
  const { summary } = against;
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
  (moved ? showMoves : showApart)(byId("against-figure"), against);
  if (moved) {
    byId("against-movers").append(movedList("Worst forgotten", "forgotten", against),
      movedList("Best learned", "learned", against));
  }
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
