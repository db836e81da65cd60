// What the charts share, and planes of probability and entropy side by side, on one scale.

const PANEL = 210; // pixels high

// --- drawing: each chart again where its colours change ---

// One drawing after the other: each is asynchronous, and the last asked for is to stand.
function drawIn(node, spec) {
  return (node.drawn = (node.drawn ?? Promise.resolve()).then(async () => {
    node.view?.finalize();
    const { view } = await vegaEmbed(node, spec(), {
      ast: true, actions: false, defaultStyle: false, tooltip: chartTip,
      renderer: printing() ? "svg" : "canvas", // dots of paper are finer than pixels
    });
    return (node.view = view);
  }));
}

// The numbers of what the pointer is on.
function chartTip(_, event, item, value) {
  if (!value) return hideTip();
  const at = { left: event.clientX + 12, top: event.clientY, bottom: event.clientY };
  showTip(at, Object.entries(value).map(([k, v]) => [k, String(v)]));
}

function chartFrame(height) {
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    width: "container", height, background: "transparent",
    config: {
      font: "system-ui, sans-serif",
      view: { stroke: colour("--line"), cursor: "crosshair" },
      axis: { labelColor: colour("--muted"), titleColor: colour("--ink"),
        gridColor: colour("--line"), domainColor: colour("--line"), tickColor: colour("--line"),
        gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500,
        titlePadding: 8 },
      legend: { labelColor: colour("--muted"), titleColor: colour("--ink"), labelFontSize: 12,
        titleFontSize: 12, titleFontWeight: 500 },
    },
  };
}

const planeAxes = (high) => ({
  x: { field: "prob", type: "quantitative", title: "prob of the label",
    scale: { domain: [0, 1], nice: false }, axis: ticks("width", 65) },
  y: { field: "entropy", type: "quantitative", title: "entropy, nats",
    scale: { domain: [0, high], nice: false }, axis: ticks("height", 45) },
});

// Numbers with so many pixels of room.
const ticks = (side, room) => ({ tickCount: { expr: `${side} / ${room}` }, format: "~g" });

// --- what stands over every plane ---

const binary = (p) => (p <= 0 || p >= 1 ? 0 : -p * Math.log(p) - (1 - p) * Math.log(1 - p));

function limits(vocabSize) {
  const points = Array.from({ length: 257 }, (_, i) => i / 256);
  const rest = vocabSize > 2 ? Math.log(vocabSize - 1) : null;
  return points.flatMap((p) => [
    { prob: p, entropy: binary(p), limit: "least" },
    ...(rest === null ? [] : [{ prob: p, entropy: binary(p) + (1 - p) * rest, limit: "most" }]),
  ]);
}

const boundsLayer = (axes, vocabSize) => ({
  data: { values: limits(vocabSize) },
  mark: { type: "line", clip: true, strokeWidth: 1.25, color: colour("--muted") },
  encoding: { ...axes, strokeDash: { field: "limit", type: "nominal", legend: null,
    scale: { domain: ["least", "most"], range: [[1, 0], [5, 4]] } } },
});

// Whether the rule's conflicts are those of a rectangle, rather than those of high surprise.
const inBox = (rule) => rule.surprise_above === undefined;

const ruleLayer = (axes, rule, high) => ({
  data: { values: inBox(rule) ? [{ prob: 0, prob2: Math.min(1, rule.prob_below), entropy: 0,
    entropy2: Math.min(high, rule.entropy_below) }] : [] },
  mark: { type: "rect", fillOpacity: 0, stroke: colour("--conflict"), strokeWidth: 2.5 },
  encoding: { ...axes, x2: { field: "prob2" }, y2: { field: "entropy2" } },
});

// --- several of them ---

// What a plane's sparse counts stand for: a cell each, with its share of the tokens.
function cellsOf(plane) {
  const { counts, columns, prob_cells: p, entropy_cells: h } = plane;
  const steps = Array.from({ length: counts.length / 2 }, (_, i) => counts.slice(2 * i, 2 * i + 2));
  const total = steps.reduce((sum, [, tokens]) => sum + tokens, 0);
  let at = 0;
  return steps.map(([step, tokens]) => {
    at += step;
    const x = at % columns, y = Math.floor(at / columns);
    // A little over the edge, or seams show between neighbours.
    return { prob: x / p, prob2: (x + 1) / p + 0.002, entropy: y / h,
      entropy2: (y + 1) / h + 0.01, tokens, share: tokens / total };
  });
}

// Draws each plane into a panel of `node`, on common axes and one scale of colours.
function showPlanes(node, panels, rule) {
  const cells = panels.map(({ plane }) => cellsOf(plane));
  const all = cells.flat();
  const highest = all.reduce((high, cell) => Math.max(high, cell.entropy2), rule.entropy_below ?? 0);
  const high = Math.ceil(Math.max(1, highest - 0.01));
  const shares = all.map((cell) => cell.share);
  const [least, most] = [Math.min, Math.max].map((of) => shares.reduce((a, b) => of(a, b)));
  const charts = panels.map(() => element("div", { class: "chart" }));
  node.replaceChildren(scaleLine(least, most, rule), element("div", { class: "panels" },
    ...panels.map(({ heading }, i) => element("figure", {}, heading, charts[i]))));
  const drawAll = () => charts.forEach((chart, i) => drawIn(chart, () =>
    panelSpec(panels[i], cells[i], rule, high, [least, Math.max(most, 2 * least)])));
  themed.push(drawAll);
}

const scaleLine = (least, most, rule) =>
  element("p", { class: "scale muted" }, "share of the tokens in a cell, log scale: ",
    element("span", {}, percent(least, 1), element("i", { class: "gradient", role: "img",
      "aria-label": "from faint to strong" }), percent(most, 1)), inBox(rule)
    ? ". Box: the conflict rule. " : ". ", "Lines: the least and the most entropy possible.");

function panelSpec({ plane, name }, values, rule, high, domain) {
  const axes = planeAxes(high);
  return {
    ...chartFrame(PANEL),
    description: `Tokens of ${name} by probability of the label and entropy.`,
    layer: [
      {
        data: { values: values.map((v) => ({ ...v, "of the tokens": percent(v.share, 1) })) },
        mark: { type: "rect", strokeWidth: 0 },
        encoding: {
          ...axes, x2: { field: "prob2" }, y2: { field: "entropy2" },
          color: { field: "share", type: "quantitative", legend: null, scale: { type: "log",
            domain, interpolate: "lab", range: SEQUENCE.map(colour) } },
          tooltip: [{ field: "tokens" }, { field: "of the tokens" }],
        },
      },
      boundsLayer(axes, plane.vocab_size),
      ruleLayer(axes, rule, high),
    ],
  };
}
