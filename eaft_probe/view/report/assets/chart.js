// The landscape's picture: counts by rectangle, the bounds of entropy, the rule's box and the brush.

const DRAWN = { prob: 2, entropy: 4 }; // cells to a rectangle: some 5 pixels each way
const ENLARGED = 2; // nats

const binary = (p) => (p <= 0 || p >= 1 ? 0 : -p * Math.log(p) - (1 - p) * Math.log(1 - p));

function limits() {
  const points = Array.from({ length: 257 }, (_, i) => i / 256);
  const rest = land.vocab_size > 2 ? Math.log(land.vocab_size - 1) : null;
  return points.flatMap((p) => [
    { prob: p, entropy: binary(p), limit: "least" },
    ...(rest === null ? [] : [{ prob: p, entropy: binary(p) + (1 - p) * rest, limit: "most" }]),
  ]);
}

function rectangles(top, drawn) {
  const cells = [];
  for (let y = 0; y < top * land.entropy_cells; y += drawn.entropy) {
    for (let x = 0; x < land.columns; x += drawn.prob) {
      const box = { x0: x, x1: x + drawn.prob, y0: y, y1: Math.min(y + drawn.entropy, land.rows) };
      const tokens = inRegion(counts, box);
      const { prob, entropy } = bounds(box);
      // Half a pixel over the edge, or seams show between neighbours.
      if (tokens) {
        cells.push({ prob: prob[0], prob2: prob[1] + 0.0008, entropy: entropy[0],
          entropy2: entropy[1] + 0.001 * top, tokens, conflicts: inRegion(conflictCounts, box) });
      }
    }
  }
  return cells;
}

// The highest entropy there is, in whole nats, and never less than the rule's where cells reach.
function top() {
  const { rows, entropy_cells: scale } = land;
  const used = Math.floor(counts.findLastIndex((n) => n > 0) / land.columns) + 1;
  return Math.ceil(Math.min(Math.max(1, used / scale, report.rule.entropy_below ?? 0), rows / scale));
}

function spec() {
  const enlarged = byId("enlarge").checked;
  const high = enlarged ? ENLARGED : top();
  const values = rectangles(high, enlarged ? { prob: 2, entropy: 1 } : DRAWN);
  const most = Math.max(2, values.reduce((a, v) => Math.max(a, v.tokens), 1));
  const x = { field: "prob", type: "quantitative", title: "prob of the label",
    scale: { domain: [0, 1], nice: false } };
  const y = { field: "entropy", type: "quantitative", title: "entropy, nats",
    scale: { domain: [0, high], nice: false } };
  const rule = report.rule;
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    description: "Tokens by probability of the label and entropy. The bounds beside it do what " +
      "dragging does.",
    width: "container", height: 400, background: "transparent",
    layer: [
      {
        data: { values }, mark: { type: "rect", strokeWidth: 0 },
        params: [{ name: "brush", value: shownBrush(high), select: {
          type: "interval", encodings: ["x", "y"], zoom: false, mark: {
            fill: colour("--accent"), fillOpacity: 0.12, stroke: colour("--accent"),
            strokeWidth: 2, strokeOpacity: 1 } } }],
        encoding: {
          x, y, x2: { field: "prob2" }, y2: { field: "entropy2" },
          color: { field: "tokens", type: "quantitative", title: "tokens",
            scale: { type: "log", domain: [1, most], interpolate: "lab",
              range: ["--seq-0", "--seq-1", "--seq-2", "--seq-3"].map(colour) },
            legend: { orient: "top", direction: "horizontal", gradientLength: 180,
              gradientThickness: 8, titleOrient: "left", format: ",d" } },
          tooltip: [{ field: "tokens" }, { field: "conflicts" }],
        },
      },
      {
        data: { values: limits() },
        mark: { type: "line", clip: true, strokeWidth: 1.25, color: colour("--muted") },
        encoding: { x, y, strokeDash: { field: "limit", type: "nominal", legend: null,
          scale: { domain: ["least", "most"], range: [[1, 0], [5, 4]] } } },
      },
      {
        data: { values: rule.surprise_above !== undefined ? [] : [{ prob: 0,
          prob2: Math.min(1, rule.prob_below), entropy: 0,
          entropy2: Math.min(high, rule.entropy_below) }] },
        mark: { type: "rect", fillOpacity: 0, stroke: colour("--conflict"), strokeWidth: 2.5 },
        encoding: { x, y, x2: { field: "prob2" }, y2: { field: "entropy2" } },
      },
    ],
    config: {
      font: "system-ui, sans-serif",
      view: { stroke: colour("--line"), cursor: "crosshair" },
      axis: { labelColor: colour("--muted"), titleColor: colour("--ink"), gridColor: colour("--line"),
        domainColor: colour("--line"), tickColor: colour("--line"), gridOpacity: 0.6,
        labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500, titlePadding: 8 },
      legend: { labelColor: colour("--muted"), titleColor: colour("--ink"), labelFontSize: 12,
        titleFontSize: 12, titleFontWeight: 500 },
    },
  };
}

// The region as the chart can draw it; none where it is everything.
function shownBrush(high) {
  if (JSON.stringify(state.region) === JSON.stringify(everything)) return undefined;
  const { prob, entropy } = bounds(state.region);
  return { x: prob, y: entropy.map((v) => Math.min(v, high)) };
}

// One drawing after the other: each is asynchronous, and the last asked for is to stand.
const draw = () => (state.drawn = state.drawn.then(embed));

async function embed() {
  if (state.view) state.view.finalize();
  const { view } = await vegaEmbed("#chart", spec(), {
    ast: true, actions: false, renderer: "canvas", defaultStyle: false, tooltip: cellTip,
  });
  view.addSignalListener("brush", brushed);
  view.addResizeListener(moveBrush);
  state.view = view;
  moveBrush(); // the region may have been chosen meanwhile
}

// A rectangle's numbers, where the pointer is.
function cellTip(_, event, item, value) {
  if (!value) return hideTip();
  const at = { left: event.clientX + 12, top: event.clientY, bottom: event.clientY };
  showTip(at, Object.entries(value).map(([k, v]) => [k, String(v)]));
}

function brushed(_, value) {
  if (!state.dragging) return; // moved by moveBrush, or cleared as the window was resized
  const { prob, entropy } = value;
  if (prob && entropy) {
    choose(atTop(region(prob, entropy)), state.view);
  } else {
    choose(everything, state.view);
  }
}

// Dragged to the chart's upper edge, a region reaches up to all there is.
function atTop(chosen) {
  const edge = top() * land.entropy_cells;
  return !byId("enlarge").checked && chosen.y1 >= edge ? { ...chosen, y1: land.rows } : chosen;
}

async function moveBrush() {
  const { view } = state;
  if (!view) return;
  const high = byId("enlarge").checked ? ENLARGED : top();
  const wanted = shownBrush(high);
  const pixels = (name, pair) => (pair ? pair.map(view.scale(name)) : [0, 0]);
  view.signal("brush_x", pixels("x", wanted?.x)).signal("brush_y", pixels("y", wanted?.y));
  await view.runAsync();
}
