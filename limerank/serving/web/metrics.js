// Parses Prometheus' text format; differences and quantiles of two readings.

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Text -> name -> [{ labels, value }]. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const part = LINE.exec(line);
    if (!part) continue;
    const labels = {};
    for (const [, name, value] of (part[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    if (!found.has(part[1])) found.set(part[1], []);
    found.get(part[1]).push({ labels, value: Number(part[3].replace("Inf", "Infinity")) });
  }
  return found;
}

/** The values of one answer of /metrics that the page shows. */
export function reading(text, time) {
  const found = parse(text);
  const gauge = (name) => found.get(name)?.[0]?.value ?? null;
  const routes = new Map();
  for (const { labels, value } of found.get("limerank_requests_total") ?? []) {
    const of = routes.get(labels.route) ?? { requests: 0, errors: 0, refused: 0 };
    of.requests += value;
    if (Number(labels.status) >= 500) of.errors += value;
    else if (Number(labels.status) >= 400) of.refused += value;
    routes.set(labels.route, of);
  }
  return {
    time,
    routes,
    seconds: histograms(found.get("limerank_request_seconds_bucket") ?? [], "route"),
    stages: histograms(found.get("limerank_stage_seconds_bucket") ?? [], "stage"),
    users: gauge("limerank_users"),
    events: gauge("limerank_events"),
    items: gauge("limerank_items"),
    version: gauge("limerank_index_version"),
    queues: (found.get("limerank_queue_depth") ?? []).map(({ labels, value }) => [labels.queue, value]),
    run: found.get("limerank_model_info")?.[0]?.labels ?? null,
    arms: outcomes(found),
  };
}

/** What followed the rankings of each arm, by label. */
function outcomes(found) {
  const of = (name, arm) => found.get(name)?.find(({ labels }) => labels.arm === arm)?.value ?? 0;
  const bounds = (name, { arm, label }) => {
    const lines = (found.get(name) ?? []).filter(({ labels }) => labels.arm === arm && labels.label === label && labels.per === "request");
    return lines.length ? Object.fromEntries(lines.map(({ labels, value }) => [labels.bound, value])) : null;
  };
  return (found.get("limerank_arm_outcomes") ?? []).map(({ labels, value }) => ({
    ...labels,
    outcomes: value,
    users: of("limerank_arm_users", labels.arm),
    shown: of("limerank_arm_shown", labels.arm),
    rate: bounds("limerank_arm_rate", labels) ?? {},
    difference: bounds("limerank_arm_difference", labels),
  }));
}

/** Name -> [[upper bound, cumulative count]], ascending. */
function histograms(lines, label) {
  const found = new Map();
  for (const { labels, value } of lines) {
    if (!found.has(labels[label])) found.set(labels[label], []);
    found.get(labels[label]).push([labels.le === "+Inf" ? Infinity : Number(labels.le), value]);
  }
  for (const buckets of found.values()) buckets.sort((a, b) => a[0] - b[0]);
  return found;
}

/** The counts of a histogram between two readings; all counts without an earlier reading. */
export function between(later, earlier) {
  if (!later) return [];
  const before = new Map(earlier ?? []);
  return later.map(([bound, count]) => [bound, Math.max(0, count - (before.get(bound) ?? 0))]);
}

export const counted = (buckets) => buckets.at(-1)?.[1] ?? 0;

/** A quantile of a histogram, linear inside a bucket; null where nothing was counted. */
export function quantile(buckets, share) {
  const total = counted(buckets);
  if (total === 0) return null;
  const wanted = share * total;
  let low = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= wanted) {
      if (bound === Infinity) return low;
      return count === below ? bound : low + ((bound - low) * (wanted - below)) / (count - below);
    }
    [low, below] = [bound, count];
  }
  return low;
}
