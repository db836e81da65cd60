// The landscape's picture: counts by rectangle, and the brush over them.

const DRAWN = { prob: 2, entropy: 4 }; // cells to a rectangle: some 5 pixels each way
const ENLARGED = 2; // nats

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
function highest() {
  const { rows, entropy_cells: scale } = land;
  const used = Math.floor(counts.findLastIndex((n) => n > 0) / land.columns) + 1;
  return Math.ceil(Math.min(Math.max(1, used / scale, report.rule.entropy_below ?? 0), rows / scale));
}

function spec() {
  const enlarged = byId("enlarge").checked;
  const high = enlarged ? ENLARGED : highest();
  const values = rectangles(high, enlarged ? { prob: 2, entropy: 1 } : DRAWN);
  const most = Math.max(2, values.reduce((a, v) => Math.max(a, v.tokens), 1));
  const axes = planeAxes(high);
  return {
    ...chartFrame(400),
    description: "Tokens by probability of the label and entropy. The bounds beside it do what " +
      "dragging does.",
    layer: [
      {
        data: { values }, mark: { type: "rect", strokeWidth: 0 },
        params: [{ name: "brush", value: shownBrush(high), select: {
          type: "interval", encodings: ["x", "y"], zoom: false, mark: {
            fill: colour("--accent"), fillOpacity: 0.12, stroke: colour("--accent"),
            strokeWidth: 2, strokeOpacity: 1 } } }],
        encoding: {
          ...axes, x2: { field: "prob2" }, y2: { field: "entropy2" },
          color: { field: "tokens", type: "quantitative", title: "tokens",
            scale: { type: "log", domain: [1, most], interpolate: "lab",
              range: SEQUENCE.map(colour) },
            legend: { orient: "top", direction: "horizontal", gradientLength: 180,
              gradientThickness: 8, titleOrient: "left", format: ",d" } },
          tooltip: [{ field: "tokens" }, { field: "conflicts" }],
        },
      },
      boundsLayer(axes, land.vocab_size),
      ruleLayer(axes, report.rule, high),
    ],
  };
}

// The region as the chart can draw it; none where it is everything.
function shownBrush(high) {
  if (JSON.stringify(state.region) === JSON.stringify(everything)) return undefined;
  const { prob, entropy } = bounds(state.region);
  return { x: prob, y: entropy.map((v) => Math.min(v, high)) };
}

async function draw() {
  const view = await drawIn(byId("chart"), spec);
  view.addSignalListener("brush", brushed);
  view.addResizeListener(moveBrush);
  state.view = view;
  moveBrush(); // the region may have been chosen meanwhile
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
  const edge = highest() * land.entropy_cells;
  return !byId("enlarge").checked && chosen.y1 >= edge ? { ...chosen, y1: land.rows } : chosen;
}

async function moveBrush() {
  const { view } = state;
  if (!view) return;
  const high = byId("enlarge").checked ? ENLARGED : highest();
  const wanted = shownBrush(high);
  const pixels = (name, pair) => (pair ? pair.map(view.scale(name)) : [0, 0]);
  view.signal("brush_x", pixels("x", wanted?.x)).signal("brush_y", pixels("y", wanted?.y));
  await view.runAsync();
}
