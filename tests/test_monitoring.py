"""What monitors a server, as it is shipped: every metric, label and value in it exists, and every
alarm fires when it should. Needs promtool for some of it: apt-get install prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from limerank.serving.http.routes import OPERATIONS
from limerank.serving.telemetry import TASKS, Numbers
from tests.documents import ROOT, anchors, texts_of

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "limerank.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
ALARMS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus"
)
ADDED = {"job", "instance"}
"""Labels that Prometheus adds."""
OWN = {"up": ADDED, "ALERTS": {"alertname", "alertstate"}}
"""Metrics of Prometheus itself."""
VALUES = {
    "task": set(TASKS),
    "outcome": {
        "accepted",
        "duplicate",
        "expired",
        "refused",
        "answered",
        "failed",
        "skipped",
        "acknowledged",
    },
    "alertstate": {"firing", "pending"},
    "job": {"limerank"},
}
"""Label -> values that a query may name. Routes, statuses and reasons are checked below."""


def metrics() -> dict[str, set[str]]:
    """Series of a server -> their labels."""
    found: dict[str, set[str]] = {}
    collectors = list(Numbers().registry._collector_to_names)
    for collector in collectors:
        name, labels = collector._name, set(collector._labelnames) | ADDED
        kind = type(collector).__name__
        if kind == "Histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels}
            found |= {f"{name}_count": labels}
        else:
            found[f"{name}_total" if kind == "Counter" else name] = labels
    return found | OWN


SERIES = metrics()
SELECTOR = re.compile(r"\b(limerank_\w+|up|ALERTS)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def queries() -> Iterator[tuple[str, str, str]]:
    """(where, query, what a legend or a text makes of its labels), of dashboard and alarms."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for name, rule in ALARMS.items():
        yield name, rule["expr"], re.sub(r"\$labels\.", "", json.dumps(rule["annotations"]))
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], annotation["textFormat"]


def variables() -> list[str]:
    return [one["definition"] for one in DASHBOARD["templating"]["list"] if "definition" in one]


def test_every_metric_and_label_exists():
    asked = [*queries(), *(("variable", one, "") for one in variables())]
    assert len(asked) > 40
    wrong = []
    for where, query, legend in asked:
        selectors = SELECTOR.findall(query)
        assert selectors, f"{where}: no metric in {query}"
        known: set[str] = set()
        for name, inside in selectors:
            if name not in SERIES:
                wrong.append(f"{where}: there is no metric {name}")
                continue
            known |= SERIES[name]
            for label, _, value in MATCHER.findall(inside):
                if label not in SERIES[name]:
                    wrong.append(f"{where}: {name} has no label {label}")
                if label in VALUES and value not in VALUES[label]:
                    wrong.append(f"{where}: no {label} is {value!r}")
        grouped = {one.strip() for of in GROUPED.findall(query) for one in of.split(",")}
        named = grouped | set(re.findall(r"\{\{\s*\$?(\w+)\s*\}\}", legend))
        wrong += [f"{where}: no label {one}" for one in sorted(named - known - {"", "value"})]
    assert not wrong, "\n".join(wrong)


def test_routes_and_reasons_exist():
    text = "\n".join(query for _, query, _ in queries())
    routes = set(re.findall(r'route="([^"]+)"', text))
    assert routes and routes <= {one.name for one in OPERATIONS}
    reasons = set(re.findall(r'reason="([^"]+)"', text))
    assert reasons and reasons <= set(texts_of(ROOT / "limerank" / "serving"))


def test_every_metric_has_a_panel():
    shown = " ".join(
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    )
    ends = "(?:_bucket|_sum|_count)$"
    lacking = {re.sub(ends, "", name) for name in SERIES} - {
        re.sub(ends, "", name) for name, _ in SELECTOR.findall(shown)
    }
    assert not lacking, "add a panel to deploy/grafana/limerank.json"


def test_the_dashboard_is_complete():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 39
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    sources = yaml.safe_load((DEPLOY / "grafana" / "datasources.yml").read_text(encoding="utf-8"))
    assert [one["type"] for one in sources["datasources"]] == ["prometheus"]


def test_every_alarm_says_what_to_do():
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    for name, rule in ALARMS.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")
        assert name.lower() in anchors(page), f"docs/production.md does not explain {name}"
    headings = set(re.findall(r"^#+ (Limerank\w+)$", page, re.MULTILINE))
    assert headings == set(ALARMS), "it explains no others"


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_reads_its_files(tmp_path):
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    config = (folder / "prometheus.yml").read_text()
    key = tmp_path / "key"
    key.touch()
    assert "/run/secrets/metrics_key" in config
    (folder / "prometheus.yml").write_text(config.replace("/run/secrets/metrics_key", str(key)))
    promtool("check", "config", folder / "prometheus.yml")


@needs_promtool
def test_every_query_of_the_dashboard_is_promql(tmp_path):
    rules = [
        {
            "record": f"query_{number}",
            "expr": query.replace("$__rate_interval", "1m").replace("$instance", ".*"),
        }
        for number, (_, query, _) in enumerate(queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


BAD: dict[str, tuple[dict[str, str], str]] = {
    "LimerankDown": ({'up{job="limerank",instance="a"}': "0x90"}, "5m"),
    "LimerankErrors": (
        {'limerank_requests_total{route="POST /v1/rank",status="500",instance="a"}': "0x9 1x90"},
        "11m",
    ),
    "LimerankUnavailable": (
        {'limerank_requests_total{route="POST /v1/rank",status="503",instance="a"}': "0+9x90"},
        "5m",
    ),
    "LimerankSlow": (
        {
            f'limerank_request_seconds_bucket{{route="POST /v1/rank",le="{le}",instance="a"}}': of
            for le, of in (("0.5", "0+9x90"), ("1.0", "0+10x90"), ("+Inf", "0+10x90"))
        },
        "20m",
    ),
    "LimerankQueue": ({'limerank_queue_depth{queue="requests",instance="a"}': "200x90"}, "6m"),
    "LimerankStoreDown": ({'limerank_store_up{instance="a"}': "0x90"}, "5m"),
    "LimerankShardDown": ({'limerank_shard_up{shard="2",instance="a"}': "0x90"}, "5m"),
    "LimerankStoreWarnings": ({'limerank_store_warnings{instance="a"}': "1x90"}, "6m"),
    "LimerankIndexDamaged": ({'limerank_index_damaged{instance="a"}': "1x90"}, "1m"),
    "LimerankIndexUnverified": (
        {
            'limerank_index_verified{instance="a"}': "0x90",
            'limerank_index_damaged{instance="a"}': "0x90",
        },
        "61m",
    ),
    "LimerankLiveItems": ({'limerank_live_items{state="pending",instance="a"}': "2x90"}, "16m"),
    "LimerankBackground": (
        {'limerank_background_failing{task="watch",instance="a"}': "1x90"},
        "6m",
    ),
    "LimerankNoEvents": (
        {'limerank_intake_events_total{outcome="accepted",instance="a"}': "7x200"},
        "130m",
    ),
    "LimerankRefusedEvents": (
        {
            'limerank_intake_events_total{outcome="accepted",instance="a"}': "0+90x90",
            'limerank_intake_events_total{outcome="refused",instance="a"}': "0+10x90",
        },
        "40m",
    ),
    "LimerankEventLog": (
        {'limerank_log_changes_total{outcome="failed",instance="a"}': "0+2x90"},
        "6m",
    ),
    "LimerankCountersOld": (
        {
            'limerank_counters_until_seconds{arm="main",instance="a"}': "0x500",
            'limerank_exposures_total{arm="main",outcome="accepted",instance="a"}': "0+9x500",
        },
        "430m",
    ),
    "LimerankConnections": (
        {'limerank_connections_closed_total{reason="no room",instance="a"}': "0+1x90"},
        "12m",
    ),
    "LimerankModelOld": (
        {'limerank_model_info{run="r1",model="lime-mha",instance="a"}': "1x450"},
        "4400m",
    ),
}
"""Alarm -> series of which it fires, and when. A value a minute; of a model, every ten minutes."""
GOOD = {
    'up{job="limerank",instance="a"}': "1x200",
    'limerank_requests_total{route="POST /v1/rank",status="200",instance="a"}': "0+600x200",
    'limerank_requests_total{route="POST /v1/rank",status="503",instance="a"}': "0x200",
    'limerank_request_seconds_bucket{route="POST /v1/rank",le="0.01",instance="a"}': "0+600x200",
    'limerank_request_seconds_bucket{route="POST /v1/rank",le="+Inf",instance="a"}': "0+600x200",
    'limerank_queue_depth{queue="requests",instance="a"}': "0 40 2 1x200",
    'limerank_store_up{instance="a"}': "1x200",
    'limerank_store_warnings{instance="a"}': "0x200",
    'limerank_index_verified{instance="a"}': "0x3 1x200",
    'limerank_index_damaged{instance="a"}': "0x200",
    'limerank_live_items{state="pending",instance="a"}': "3x2 0x200",
    'limerank_background_failing{task="watch",instance="a"}': "1x2 0x200",
    'limerank_intake_events_total{outcome="accepted",instance="a"}': "0+90x200",
    'limerank_intake_events_total{outcome="refused",instance="a"}': "0+1x200",
    'limerank_connections_closed_total{reason="no room",instance="a"}': "0x200",
    'limerank_log_changes_total{outcome="acknowledged",instance="a"}': "0+90x200",
    'limerank_log_changes_total{outcome="failed",instance="a"}': "0x200",
    'limerank_counters_until_seconds{arm="main",instance="a"}': "-7200+60x200",
    'limerank_exposures_total{arm="main",outcome="accepted",instance="a"}': "0+9x200",
}
"""A healthy server."""
FRESH = {
    'limerank_model_info{run="r1",model="lime-mha",instance="a"}': "1x144 stale",
    'limerank_model_info{run="r2",model="lime-mha",instance="a"}': "_x144 1x306",
}
"""One that loads a new model after a day."""


@needs_promtool
def test_alarms_fire_when_they_should(tmp_path):
    assert set(BAD) == set(ALARMS)
    short: list[dict[str, Any]] = []
    long: list[dict[str, Any]] = []
    for name, (series, when) in BAD.items():
        samples = [{"labels": "{}", "value": 1}]
        tests = long if when == "4400m" else short
        tests.append(_expect(series, f'alertname="{name}"', {when: samples}))
    short.append(_expect(GOOD, 'alertname!=""', {"30m": [], "150m": []}))
    long.append(_expect(FRESH, 'alertname!=""', {"4000m": [], "4400m": []}))
    for step, tests in (("1m", short), ("10m", long)):
        for test in tests:
            test["interval"] = step
        given = {
            "rule_files": [str(DEPLOY / "prometheus" / "rules.yml")],
            "evaluation_interval": step,
            "tests": tests,
        }
        path = tmp_path / f"{step}.yml"
        path.write_text(yaml.safe_dump(given))
        promtool("test", "rules", path)


def _expect(
    series: dict[str, str], alarms: str, samples: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """A test of promtool: how many alarms fire at which time."""
    return {
        "input_series": [{"series": one, "values": of} for one, of in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{{alarms},alertstate="firing"}})',
                "eval_time": when,
                "exp_samples": expected,
            }
            for when, expected in samples.items()
        ],
    }
