// Operations: differences between readings of /metrics, which are taken only while the tab is visible.

import { call } from "./api.js";
import { lineChart } from "./chart.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { between, counted, quantile, reading } from "./metrics.js";

const EVERY = 2000; // ms between readings
const SPAN = 5 * 60_000; // ms that charts show
const WINDOW = 60_000; // ms over which tables and tiles count
const MAIN = "POST /v1/rank";

const rate = (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(value < 1 ? 2 : 1) : format.count(Math.round(value)));
const time = (seconds) => (seconds === null ? "–" : format.milliseconds(1000 * seconds));
const interval = ({ value, low, high }) => (value === undefined ? "–" : low === undefined ? value.toFixed(4) : `${value.toFixed(4)} (${low.toFixed(4)} to ${high.toFixed(4)})`);
const name = (route) => route.replace(":path}", "}");

/**
 * @param failed called with a problem about the key; others are shown here.
 * @param alarms of the run, as in the answer of /v1/model.
 */
export function operationsView(root, { failed, alarms }) {
  let readings = [];
  let timer = 0;
  let shown = false;
  let paused = false;
  let route = MAIN;

  const tiles = el("dl", { class: "tiles" });
  const state = el("p", { class: "quiet live", role: "status" });
  const pause = el("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const chosen = el("select", { id: "ops-route" }, el("option", { value: MAIN }, MAIN));
  const throughput = lineChart("Throughput", "Requests answered per second, between two readings.", (value) => `${rate(value)}/s`);
  const latency = lineChart("Latency", "Time in the server, estimated from histogram buckets.", time);
  const routes = table("Routes", ["route", "per s", "p50", "p99", "refused", "errors", "total"]);
  const stages = table("Stages", ["stage", "per s", "p50", "p99", "total"]);
  const arms = table("Arms", ["arm and label", "users", "rankings", "outcomes", "per ranking", "difference per ranking"]);
  arms.node.querySelector(".hint").textContent = "What followed shown rankings whose window is over, with 95 % intervals; those of differences from the main arm stay valid while you look.";
  arms.node.hidden = true;
  latency.node.querySelector("figcaption").append(el("label", { for: "ops-route", class: "unseen" }, "Route"), chosen);

  root.replaceChildren(
    el("div", { class: "heading" }, el("h2", {}, "Operations"), el("div", { class: "heading-right" }, state, pause)),
    ...(alarms.length ? [warned(alarms)] : []),
    tiles,
    el("div", { class: "charts" }, throughput.node, latency.node),
    el("div", { class: "tables" }, routes.node, stages.node, arms.node),
  );

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    schedule();
  });
  chosen.addEventListener("input", () => {
    route = chosen.value;
    draw();
  });
  document.addEventListener("visibilitychange", schedule);

  const running = () => shown && !paused && !document.hidden;

  function schedule() {
    clearTimeout(timer);
    if (running()) poll();
    else if (paused) state.textContent = "paused";
  }

  async function poll() {
    clearTimeout(timer);
    try {
      const text = await call("GET", "metrics", { text: true });
      const read = reading(text, Date.now());
      // A restarted server counts from zero: earlier readings do not apply.
      const total = (one) => [...one.routes.values()].reduce((sum, of) => sum + of.requests, 0);
      if (readings.length && total(read) < total(readings.at(-1))) readings = [];
      readings.push(read);
      readings = readings.filter((one) => one.time >= read.time - SPAN);
      state.textContent = "live, every 2 s";
      state.classList.remove("wrong");
      draw();
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      state.textContent = problem.words;
      state.classList.add("wrong");
      if (problem.status === 401 || problem.status === 403) {
        failed(problem);
        return;
      }
    }
    if (running()) timer = setTimeout(poll, EVERY);
  }

  function draw() {
    const now = readings.at(-1);
    if (!now || !shown) return;
    const first = readings.find((one) => one.time >= now.time - WINDOW);
    const span = Math.max((now.time - first.time) / 1000, 1e-3);
    const fresh = first === now;
    const per = (later, earlier) => (fresh ? null : Math.max(0, later - (earlier ?? 0)) / span);

    let all = 0;
    let wrong = 0;
    const rows = [];
    for (const of of [...now.routes.keys()].sort()) {
      const [here, before] = [now.routes.get(of), first.routes.get(of)];
      const took = between(now.seconds.get(of), fresh ? null : first.seconds.get(of));
      const speed = per(here.requests, before?.requests);
      all += speed ?? 0;
      wrong += per(here.errors, before?.errors) ?? 0;
      rows.push([name(of), speed === null ? "–" : rate(speed), time(quantile(took, 0.5)), time(quantile(took, 0.99)), format.count(here.refused), format.count(here.errors), format.count(here.requests)]);
    }
    routes.fill(rows);
    stages.fill(
      [...now.stages.keys()].map((of) => {
        const total = now.stages.get(of);
        const took = between(total, fresh ? null : first.stages.get(of));
        const speed = fresh ? "–" : rate(counted(took) / span);
        return [of, speed, time(quantile(took, 0.5)), time(quantile(took, 0.99)), format.count(counted(total))];
      }),
    );
    arms.node.hidden = now.arms.length === 0;
    arms.fill(
      now.arms.map((of) => [
        `${of.arm}: ${of.label}`,
        format.count(of.users),
        format.count(of.shown),
        format.count(of.outcomes),
        interval(of.rate),
        of.difference ? interval(of.difference) : "–",
      ]),
    );
    const rank = between(now.seconds.get(MAIN), fresh ? null : first.seconds.get(MAIN));
    const queue = now.queues.reduce((sum, [, value]) => sum + value, 0);
    const values = [
      ["requests/s", fresh ? "–" : rate(all)],
      ["rank p50", time(quantile(rank, 0.5))],
      ["rank p99", time(quantile(rank, 0.99))],
      ["errors/s", fresh ? "–" : rate(wrong), wrong > 0 ? "bad" : null],
      ["queue depth", format.count(queue), queue > 0 ? "busy" : null],
      ["users", now.users === null ? "–" : format.count(now.users)],
      ["events", now.events === null ? "–" : format.count(now.events)],
      ["items", now.items === null ? "–" : format.count(now.items)],
      ["index version", now.version === null ? "–" : String(now.version)],
    ];
    tiles.replaceChildren(...values.map(([of, value, kind]) => el("div", { class: kind ?? null }, el("dt", {}, of), el("dd", {}, value))));
    charts(now);
  }

  function charts(now) {
    const known = [...now.seconds.keys()].sort();
    if (!known.includes(route)) known.push(route);
    if (chosen.options.length !== known.length) chosen.replaceChildren(...known.map((of) => el("option", { value: of, selected: of === route }, name(of))));
    const from = Math.min(readings[0].time, now.time - WINDOW);
    const pairs = readings.slice(1).map((one, at) => [one, readings[at]]);
    const speed = (count) =>
      pairs.map(([later, earlier]) => {
        let sum = 0;
        for (const [of, counts] of later.routes) sum += count(of, counts) - (earlier.routes.has(of) ? count(of, earlier.routes.get(of)) : 0);
        return [later.time, Math.max(0, sum) / ((later.time - earlier.time) / 1000)];
      });
    throughput.draw(
      [
        { name: "all routes", kind: "first", points: speed((of, counts) => counts.requests) },
        { name: MAIN, kind: "second", points: speed((of, counts) => (of === MAIN ? counts.requests : 0)) },
        { name: "errors", kind: "bad", points: speed((of, counts) => counts.errors) },
      ],
      from,
      now.time,
    );
    const at = (share) => pairs.map(([later, earlier]) => [later.time, quantile(between(later.seconds.get(route), earlier.seconds.get(route)), share)]);
    latency.draw(
      [
        { name: "p50", kind: "first", points: at(0.5) },
        { name: "p99", kind: "third", points: at(0.99) },
      ],
      from,
      now.time,
    );
  }

  return {
    show: (yes) => {
      shown = yes;
      schedule();
    },
    again: schedule,
  };
}

/** The reasons for not deploying the run. */
function warned(alarms) {
  return el(
    "section",
    { class: "card alarms", "aria-labelledby": "alarms-title" },
    el("h3", { id: "alarms-title" }, alarms.length === 1 ? "1 alarm of this run" : `${alarms.length} alarms of this run`),
    el("ul", {}, alarms.map((one) => el("li", {}, el("strong", {}, one.name), `: ${one.message}. `, el("span", { class: "quiet" }, `Try: ${one.advice}.`)))),
  );
}

function table(title, columns) {
  const body = el("tbody");
  const node = el(
    "div",
    { class: "card wide" },
    el("h3", {}, title),
    el("p", { class: "hint" }, "Over the last minute; refused, errors and total since the server started."),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, el("table", {}, el("thead", {}, el("tr", {}, columns.map((one) => el("th", { scope: "col" }, one)))), body)),
  );
  if (title === "Stages") node.querySelector(".hint").textContent = "The steps of requests in the server, over the last minute; total since the server started.";
  const fill = (rows) => body.replaceChildren(...rows.map((cells) => el("tr", {}, cells.map((one, at) => (at === 0 ? el("th", { scope: "row" }, one) : el("td", {}, one))))));
  return { node, fill };
}
