// Draws the figures that the page carries as JSON: one uPlot chart each, curves of different runs on a common x axis.
"use strict";
const COLORS = ["#1668c7", "#d1495b", "#2a9d4a", "#9b5de5", "#e08e0b", "#0a9396", "#8d6346", "#6c757d"];
const figures = JSON.parse(document.getElementById("data").textContent);
const container = document.getElementById("figures");
const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
const ink = isDark ? "#9aa4b1" : "#5b6470", grid = isDark ? "#2a3038" : "#e8ecf0";
let charts = [];

const short = (v, digits = 4) => v == null ? "" : Math.abs(v) >= 1e9 ? +(v / 1e9).toPrecision(digits) + " G"
  : Math.abs(v) >= 1e6 ? +(v / 1e6).toPrecision(digits) + " M" : Math.abs(v) >= 1e4 ? +(v / 1e3).toPrecision(digits) + " k"
  : Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(Math.max(1, digits - 4)) : String(+v.toPrecision(digits));

// As many digits as tell the ticks of an axis apart.
function tickLabels(u, ticks) {
  const known = new Set(ticks.filter(v => v != null));
  let digits = 4;
  while (digits < 15 && new Set([...known].map(v => short(v, digits))).size < known.size) ++digits;
  return ticks.map(v => short(v, digits));
}

// Values of a curve on the union of all x values.
function aligned(curves, key) {
  const xs = [...new Set(curves.flatMap(c => c.x))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, i) => [x, i]));
  return [xs, curves.map(c => {
    const ys = new Array(xs.length).fill(undefined);
    (c[key] || c.y).forEach((y, i) => { ys[place.get(c.x[i])] = y; });
    return ys;
  })];
}

function draw() {
  charts.forEach(c => c.destroy());
  charts = [];
  container.replaceChildren();
  const showRaw = document.getElementById("raw").checked, allLog = document.getElementById("log").checked;
  for (const figure of figures) {
    const box = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = figure.title;
    box.append(caption);
    container.append(box);
    const [xs, lines] = aligned(figure.curves, "smooth");
    const data = [xs], series = [{ label: figure.x, value: (u, v) => short(v) }];
    if (showRaw) {
      const raw = aligned(figure.curves, "y")[1];
      figure.curves.forEach((c, i) => {
        if (!c.smooth) return;
        data.push(raw[i]);
        series.push({ label: "", class: "raw", stroke: COLORS[c.run % COLORS.length] + "38", width: 1, spanGaps: true, points: { show: false } });
      });
    }
    figure.curves.forEach((c, i) => {
      data.push(lines[i]);
      series.push({ label: c.name, stroke: COLORS[c.run % COLORS.length], width: 1.6, dash: c.dashed ? [6, 4] : undefined, spanGaps: true,
        points: { show: c.x.length < 40, size: 4 }, value: (u, v) => short(v) });
    });
    const positive = data.slice(1).every(ys => ys.every(y => y == null || y > 0));
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, font: "11px system-ui" };
    charts.push(new uPlot({
      width: box.clientWidth - 24, height: 250, series, cursor: { sync: { key: figure.x } },
      scales: { x: { time: false }, y: { distr: positive && (allLog || figure.log) ? 3 : 1 } },
      axes: [{ ...axis, label: figure.x, labelSize: 18, labelFont: "11px system-ui", values: tickLabels },
             { ...axis, label: figure.y, labelSize: 18, labelFont: "11px system-ui", size: 58, values: tickLabels }],
    }, data, box));
    for (const row of box.querySelectorAll(".u-series.raw")) row.style.display = "none";
  }
}
for (const id of ["raw", "log"]) document.getElementById(id).addEventListener("change", draw);
let pending = 0;
addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(draw, 150); });
draw();
