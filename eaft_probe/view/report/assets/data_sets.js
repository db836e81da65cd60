// Several scans: shares of conflicts with intervals, planes side by side, and which one to look into.

function showDataSets(found) {
  byId("sets").hidden = byId("sets-link").hidden = byId("chosen-label").hidden = false;
  byId("title").textContent = found.title;
  document.title = `${found.title} · eaft-probe report`;
  byId("rule").textContent = found.said;
  byId("sets-notices").append(...found.notes.map((n) => element("p", { class: "notice" }, n)));
  byId("sets-shares").append(sharesTable(found.sets));
  showPlanes(byId("sets-planes"), found.sets.map((set, i) => ({
    plane: set.plane, name: set.name,
    heading: element("figcaption", {}, setButton(set, i), ` ${conflictShare(set)} conflicts`),
  })), found.rule);
  byId("sets-table").append(quantitiesTable(found));
  options(byId("chosen"), found.sets.map((set, i) => [i, set.name]));
  byId("chosen").addEventListener("change", () => chooseScan(Number(byId("chosen").value)));
}

const conflictShare = (set) => share(set.quantities.conflict_share[0]);

function chooseScan(i) {
  byId("chosen").value = i;
  showScan(i);
  draw();
}

// Opens the sections below on that data set.
function setButton(set, i) {
  return button(set.name, () => {
    chooseScan(i);
    byId("short").scrollIntoView();
  }, { class: "link" });
}

// A dot at each share, on a line from end to end of its interval, all on one axis.
function sharesTable(sets) {
  const shares = sets.map((set) => set.quantities.conflict_share);
  const most = shares.flat().reduce((a, b) => Math.max(a, b ?? 0), 0) || 1;
  const rows = sets.map((set, i) => [setButton(set, i),
    element("div", { class: "shares" }, track(shares[i], most), withInterval(shares[i], share)),
    whole(set.examples), whole(set.tokens)]);
  return table(["", `conflicts: from 0 to ${share(most)} of the tokens`, "examples", "tokens"], rows);
}

function withInterval([value, low, high], write) {
  const ends = low === null ? "no interval" : `${write(low)} to ${write(high)}`;
  return element("span", { class: "value" }, element("b", {}, write(value)), " ",
    element("small", { class: "muted" }, ends));
}

function track([value, low, high], most) {
  const line = element("span", { class: "interval" }), dot = element("span", { class: "dot" });
  const at = (x) => `${(100 * x) / most}%`;
  dot.style.left = at(value);
  line.style.left = at(low ?? value);
  line.style.right = `${100 - (100 * (high ?? value)) / most}%`;
  return element("div", { class: "track", "aria-hidden": "true" }, line, dot);
}

function quantitiesTable({ sets, meanings }) {
  const names = Object.keys(meanings).filter((name) => name !== "conflict_share");
  const rows = sets.map((set, i) => [setButton(set, i), ...names.map((name) =>
    withInterval(set.quantities[name], name.endsWith("_share") ? share : number))]);
  return table(["", ...names.map((name) => named(name, meanings))], rows);
}
