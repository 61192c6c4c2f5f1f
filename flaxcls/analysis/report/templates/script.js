"use strict";
// The interactive parts of the report: charts, the threshold with its metrics, and sortable tables.
const report = JSON.parse(document.getElementById("report-data").textContent);
const views = {};
const share = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 2 });

function setSignals(chart, values) {
  const view = views[chart];
  if (!view) return;
  for (const [name, value] of Object.entries(values)) view.signal(name, value);
  view.runAsync();
}

// null for an undefined share, such as the precision if no example counts as positive; it is shown as a dash
function divided(part, whole) {
  return whole > 0 ? part / whole : null;
}

function follow(section) {
  const number = section.dataset.thresholds;
  const counts = report.thresholds[number][section.querySelector("select").value];
  const at = Number(section.querySelector(".threshold").value);
  const [tp, fp] = [counts.tp[at], counts.fp[at]];
  const [fn, tn] = [counts.positives - tp, counts.negatives - fp];
  const shares = {
    precision: divided(tp, tp + fp),
    recall: divided(tp, tp + fn),
    F1: divided(2 * tp, 2 * tp + fp + fn),
    specificity: divided(tn, tn + fp),
  };
  const whole = { "true positives": tp, "false positives": fp, "false negatives": fn, "true negatives": tn };
  for (const [name, value] of Object.entries(shares)) {
    section.querySelector(`[data-number="${name}"]`).value = value === null ? "–" : share.format(value);
  }
  for (const [name, value] of Object.entries(whole)) {
    section.querySelector(`[data-number="${name}"]`).value = value.toLocaleString("en");
  }
  const threshold = report.grid[at].toFixed(3);
  section.querySelector(".value").value = threshold;
  section.querySelector(".threshold").setAttribute("aria-valuetext", threshold);
  setSignals(`roc-${number}`, { x: 1 - shares.specificity, y: shares.recall });
  // if no example counts as positive, there is no precision and no point to draw
  setSignals(`precision-recall-${number}`, { x: shares.recall, y: shares.precision ?? -1 });
}

function sortBy(button) {
  const head = button.closest("th");
  const body = head.closest("table").tBodies[0];
  const column = head.cellIndex;
  const descending = head.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === ""); // undefined values come last
    const order = "value" in one.cells[column].dataset ? a - b : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
  for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
}

for (const control of document.querySelectorAll("[data-signal]")) {
  control.addEventListener("change", () => {
    for (const chart of control.dataset.charts.split(" ")) setSignals(chart, { [control.dataset.signal]: control.value });
  });
}
const sections = [...document.querySelectorAll("[data-thresholds]")].filter((section) => section.querySelector("select"));
for (const section of sections) {
  for (const event of ["input", "change"]) section.addEventListener(event, () => follow(section));
  follow(section);
}
for (const button of document.querySelectorAll("table[data-sortable] button")) {
  button.addEventListener("click", () => sortBy(button));
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

// ast: expressions are interpreted, because the page forbids code made from text
const options = { renderer: "svg", ast: true, actions: false, tooltip: { disableDefaultStyle: true } };
Promise.allSettled(
  Object.entries(report.specs).map(async ([id, spec]) => {
    views[id] = (await vegaEmbed(document.getElementById(id), spec, options)).view;
  }),
).then((drawn) => {
  sections.forEach(follow);
  for (const { reason } of drawn) if (reason) console.error(reason);
  document.documentElement.dataset.ready = "true";
});
