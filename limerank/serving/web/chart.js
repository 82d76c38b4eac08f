// A chart of lines over time.

import { el, svg } from "./dom.js";

const TALL = 170;
const LEFT = 54;
const BOTTOM = 22;
const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/**
 * @param title of the chart; `note` is shown below it.
 * @param format turns a value into text.
 * @returns { node, draw } where draw takes [{ name, kind, points: [[time, value or null]] }] and
 *   the first and the last time of the chart.
 */
export function lineChart(title, note, format) {
  const plot = el("div", { class: "plot" });
  const legend = el("p", { class: "legend" });
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const node = el("figure", { class: "card chart" }, el("figcaption", {}, el("h3", {}, title), el("p", { class: "hint" }, note)), legend, plot, readout);
  let last = null;
  let pointed = null;

  function draw(series, from, to) {
    last = [series, from, to];
    const width = Math.max(260, plot.clientWidth);
    const values = series.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value !== null);
    const top = nice(Math.max(0, ...values));
    const x = (time) => LEFT + ((width - LEFT - 8) * (time - from)) / (to - from);
    const y = (value) => TALL - BOTTOM - ((TALL - BOTTOM - 10) * value) / top;
    const parts = (values.length ? [0, top / 2, top] : [0]).map((value) =>
      svg("g", { class: "grid" }, svg("line", { x1: LEFT, x2: width - 8, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value ? format(value) : "0")),
    );
    parts.push(
      svg("text", { class: "axis", x: LEFT, y: TALL - 5 }, CLOCK.format(from)),
      svg("text", { class: "axis", x: width - 8, y: TALL - 5, "text-anchor": "end" }, CLOCK.format(to)),
    );
    for (const one of series) {
      parts.push(svg("path", { class: `line ${one.kind}`, d: line(one.points, x, y) }));
      // A value without neighbours is drawn as a dot.
      one.points.forEach(([time, value], at) => {
        const alone = value !== null && (one.points[at - 1]?.[1] ?? null) === null && (one.points[at + 1]?.[1] ?? null) === null;
        if (alone) parts.push(svg("circle", { class: `dot ${one.kind}`, cx: x(time), cy: y(value), r: 2.2 }));
      });
    }
    if (values.length === 0) parts.push(svg("text", { class: "nothing", x: (LEFT + width) / 2, y: TALL / 2 - 4, "text-anchor": "middle" }, "no requests yet"));
    legend.replaceChildren(...series.map((one) => el("span", { class: one.kind }, one.name, " ", el("b", {}, newest(one)))));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${TALL}`, width, height: TALL, role: "img", "aria-label": `${title}: ${series.map((one) => `${one.name} ${newest(one)}`).join(", ")}` }, ...parts);
    plot.replaceChildren(picture);
    read();
  }

  function newest(one) {
    const latest = one.points.findLast(([, value]) => value !== null);
    return latest ? format(latest[1]) : "–";
  }

  function read() {
    plot.querySelector(".cross")?.remove();
    if (pointed === null || last === null) {
      readout.textContent = "";
      return;
    }
    const [series, from, to] = last;
    const picture = plot.firstElementChild;
    const width = picture.viewBox.baseVal.width;
    const time = from + ((to - from) * (pointed - LEFT)) / (width - LEFT - 8);
    const times = series[0].points.map(([at]) => at);
    if (!times.length) return;
    const at = times.reduce((best, one, index) => (Math.abs(one - time) < Math.abs(times[best] - time) ? index : best), 0);
    const where = LEFT + ((width - LEFT - 8) * (times[at] - from)) / (to - from);
    picture.append(svg("line", { class: "cross", x1: where, x2: where, y1: 6, y2: TALL - BOTTOM }));
    const values = series.map((one) => `${one.name} ${one.points[at]?.[1] === null || one.points[at] === undefined ? "–" : format(one.points[at][1])}`);
    readout.textContent = `${CLOCK.format(times[at])}  ${values.join("  ")}`;
  }

  plot.addEventListener("pointermove", (event) => {
    pointed = event.clientX - plot.getBoundingClientRect().left;
    read();
  });
  plot.addEventListener("pointerleave", () => {
    pointed = null;
    read();
  });
  addEventListener("resize", () => last && node.isConnected && node.offsetParent && draw(...last));
  return { node, draw };
}

function line(points, x, y) {
  let drawn = "";
  let pen = false;
  for (const [time, value] of points) {
    if (value === null) pen = false;
    else {
      drawn += `${pen ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = true;
    }
  }
  return drawn;
}

/** The smallest of 1, 2, 5 times a power of ten that is not less. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 1.02) ?? 20 * power;
}
