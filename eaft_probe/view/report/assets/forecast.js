// The forecast of a scan: what one step along each objective would do, in words and drawn.

function showForecast() {
  const { forecast } = report;
  byId("forecast").hidden = byId("forecast-link").hidden = !forecast;
  byId("short-training").textContent = forecast
    ? "What one small step of training on them would do is under Forecast."
    : "What training on them would do is not measured here.";
  if (!forecast) return;
  byId("forecast-made").textContent = sentence(forecast.made);
  byId("forecast-cards").replaceChildren(...forecast.cards.map(headlined));
  byId("forecast-objectives").replaceChildren(objectivesTable(forecast.objectives));
  const charts = FORECASTS.map(() => element("div", { class: "chart" }));
  byId("forecast-figure").replaceChildren(...FORECASTS.map(([, title, text], i) =>
    element("figure", {}, element("h3", {}, title),
      element("p", { class: "muted" }, text(forecast)), charts[i])));
  drawForecast();
}

function drawForecast() {
  const charts = byId("forecast-figure").querySelectorAll(".chart");
  if (report.forecast) charts.forEach((chart, i) =>
    drawIn(chart, () => FORECASTS[i][0](report.forecast)));
}

function objectivesTable(objectives) {
  const cells = (values, write) =>
    values[0] === null ? element("span", {}, "–") : withInterval(values, write);
  const rows = objectives.map((o) => [
    element("span", {}, element("b", {}, o.name), " ", element("span", { class: "muted" }, o.words)),
    cells(o.gain, number), cells(o.retain_nll_change, signed), cells(o.retain_kl, number),
    cells(o.exchange_rate, number)]);
  return table(["objective", "gain: fall of the held-out nll, nats", "change of the retained nll, nats",
    "KL on the retained data, nats", "KL for the same gain, over sft's"], rows);
}

const FORECASTS = [
  [alignmentSpec, "Which tokens pull where", ({ plane }) => "The mean alignment of the tokens in a " +
    "cell: a step on a blue one lowers the retained nll, on a red one it raises it. Grey: fewer " +
    `than ${plane.few} tokens.`],
  [ratesSpec, "What each objective pays", ({ objectives }) => "The KL on the retained data for the " +
    "same gain, over that of sft, with 95% intervals." + unpriced(objectives)],
];

function unpriced(objectives) {
  const names = objectives.filter((o) => o.exchange_rate[0] === null).map((o) => o.name);
  return names.length ? ` Without a price: ${names.join(", ")}.` : "";
}

function alignmentSpec({ plane }) {
  const { cells, few } = plane;
  const high = Math.ceil(cells.reduce((a, c) => Math.max(a, c.entropy_to), 1));
  const axes = planeAxes(high);
  const values = cells.filter((c) => c.tokens >= few);
  const most = values.reduce((a, c) => Math.max(a, Math.abs(c.alignment)), 1e-12);
  const place = { ...at(axes, "prob_from", "entropy_from"), ...CELL_EDGES,
    tooltip: [{ field: "tokens" }] };
  return {
    ...chartFrame(PANEL),
    description: "The mean alignment of tokens with the retained data, by probability of the label " +
      "and entropy.",
    layer: [
      { data: { values: cells.filter((c) => c.tokens < few) },
        mark: { type: "rect", strokeWidth: 0, color: colour("--grey-0") }, encoding: place },
      { data: { values: values.map((c) => ({ ...c, "mean alignment": number(c.alignment) })) },
        mark: { type: "rect", strokeWidth: 0 },
        encoding: { ...place, tooltip: [{ field: "tokens" }, { field: "mean alignment" }],
          color: { field: "alignment", type: "quantitative", title: "mean alignment",
            scale: { domain: [-most, 0, most], interpolate: "rgb",
              range: ["--forgotten", "--even", "--learned"].map(colour) },
            legend: { orient: "top", direction: "horizontal", gradientLength: 120,
              gradientThickness: 8, titleOrient: "left", format: "+.2~g",
              values: [-most, most] } } } },
      boundsLayer(axes, plane.vocab_size),
      ruleLayer(axes, report.rule, high),
    ],
  };
}

const ROW = 22; // pixels of an objective

function ratesSpec({ objectives }) {
  const values = objectives.filter((o) => o.exchange_rate[0] !== null).map((o) => {
    const [rate, low, high] = o.exchange_rate;
    return { objective: o.name, rate, low, high, "over sft": number(rate),
      "95%": `${number(low)} to ${number(high)}` };
  });
  const x = (field) => ({ field, type: "quantitative", scale: { type: "log", nice: false,
    padding: 12 }, title: "KL for the same gain, over sft's (log scale)",
    axis: { values: roundNumbers(values), format: "~g" } });
  const y = { field: "objective", type: "nominal", sort: null, title: null,
    axis: { domain: false, ticks: false, labelColor: colour("--ink"), labelLimit: 150 } };
  const tooltip = ["objective", "over sft", "95%"].map((field) => ({ field }));
  return {
    ...chartFrame(Math.max(PANEL, ROW * values.length)),
    description: "What each objective pays; the table has the numbers.",
    data: { values },
    layer: [
      { data: { values: [{ rate: 1 }] }, mark: { type: "rule", color: colour("--muted"),
        strokeDash: [4, 3] }, encoding: { x: x("rate") } },
      { mark: { type: "rule", strokeWidth: 2, color: colour("--accent") },
        encoding: { y, x: x("low"), x2: { field: "high" }, tooltip } },
      { mark: { type: "circle", size: 60, opacity: 1, color: colour("--accent") },
        encoding: { y, x: x("rate"), tooltip } },
    ],
  };
}

const MOST_TICKS = 7;

// Round numbers from end to end of the intervals, as many as there is room for.
function roundNumbers(values) {
  const ends = values.flatMap(({ low, high }) => [low, high, 1]);
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const first = Math.floor(Math.log10(least)), past = Math.ceil(Math.log10(most));
  const powers = Array.from({ length: past - first + 1 }, (_, i) => first + i);
  const tenths = Array.from({ length: 90 }, (_, i) => 1 + i / 10);
  const choices = [tenths, [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].map((factors) =>
    powers.flatMap((p) => factors.map((f) => Number((f * 10 ** p).toPrecision(3))))
      .filter((x) => x >= least && x <= most));
  return choices.find((ticks) => ticks.length <= MOST_TICKS) ?? [least, 1, most];
}
