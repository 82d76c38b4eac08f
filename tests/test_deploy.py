"""What runs a server, as it is shipped: containers, units, manifests and the proxy in front of it
do what the documents say. Needs nginx for some of it: apt-get install nginx-light."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from limerank.cli.app import command_of
from limerank.cli.refresh import REFUSED
from limerank.data.description import load_spec
from limerank.data.spec import Spec
from limerank.refresh.config import load_config
from limerank.serving.kafka import parse_log
from limerank.serving.stores import ValkeyStore
from limerank.serving.stores.valkey_server import DURABLE
from limerank.validation import validate
from tests.documents import ROOT, blocks
from tests.test_hostile import KEYS, Stub, served
from tests.valkey_server import PROGRAM, server

DEPLOY = ROOT / "deploy"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
OPENSSL = shutil.which("openssl")
needs_nginx = pytest.mark.skipif(
    NGINX is None or OPENSSL is None,
    reason="nginx or openssl is not installed: apt-get install nginx-light openssl",
)
PATIENCE = 20.0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextlib.contextmanager
def nginx(folder, upstream):
    """The shipped configuration on ports of its own, before a server; gives its address."""
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    plain, encrypted = free_port(), free_port()
    for old, new in (
        ("/tmp/", f"{folder}/"),  # first: other folders may be below it
        ("rate=100r/s", "rate=1r/s"),  # so that a slow machine reaches the limit, too
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{encrypted} ssl;"),
        ("server limerank:8000;", f"server 127.0.0.1:{upstream};"),
        ("/etc/nginx/tls/", f"{folder}/"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(f"daemon off;\n{text}", encoding="utf-8")
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    command = [NGINX, "-c", folder / "nginx.conf", "-p", folder, "-e", folder / "error"]
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(folder / "out", "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        limit = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", encrypted)).close()
                break
            assert process.poll() is None and time.monotonic() < limit, (folder / "out").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{encrypted}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@needs_nginx
def test_nginx_passes_requests_on_and_bounds_them(tmp_path):
    seen = []
    engine = Stub()
    engine.rank = lambda asked: seen.append(asked) or {"items": []}
    proxies = {"proxies": ("127.0.0.0/8",)}
    with served(engine, **proxies) as (port, _), nginx(tmp_path, port) as (plain, url):
        with httpx.Client(base_url=url, verify=False, timeout=PATIENCE) as client:
            key = {"Authorization": f"Bearer {KEYS['admin'][0]}"}
            assert client.get("/healthz").status_code == 200
            answer = client.post("/v1/rank", json={"user": 1}, headers=key)
            assert answer.json() == {"items": []} and seen[0].user == 1
            assert answer.headers["strict-transport-security"]
            assert client.get("/metrics", headers=key).status_code == 404
            assert client.post("/v1/admin/reload", json={}, headers=key).status_code == 404
            assert client.get("/x" * 9000).status_code == 414
            big = client.post("/v1/rank", content=b" " * (9 << 20), headers=key)
            assert big.status_code == 413
            codes = {client.get("/healthz").status_code for _ in range(600)}
            assert codes == {200, 429}
        assert httpx.get(plain + "/v1/model").headers["location"].startswith("https://")


def text_of(*names: str) -> str:
    return DEPLOY.joinpath(*names).read_text(encoding="utf-8")


COMPOSE: dict[str, Any] = yaml.safe_load(text_of("compose.yaml"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SHOP = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")


def options_of_serve() -> set[str]:
    return {opt for one in command_of("serve").params for opt in one.opts}


def test_what_is_shipped_holds_together():
    """What one file says of another, without the programs that read them."""
    conf = text_of("nginx.conf")
    assert conf.count("{") == conf.count("}")
    server = SERVICES["limerank"]
    assert "server limerank:8000;" in conf and "--port=8000" in server["command"]
    assert "limerank:8000" in text_of("prometheus", "prometheus.yml")
    (network,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    assert f"--proxy={network['subnet']}" in server["command"]
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in conf
    for command in (server["command"], kubernetes()["Deployment"][0]["containers"][0]["args"]):
        assert command[0] == "serve"
        assert {one.partition("=")[0] for one in command[1:]} <= options_of_serve()
    for address in ("datasources.yml", "dashboards.yml", "limerank.json"):
        assert any(f"/{address}:" in one for one in SERVICES["grafana"]["volumes"])
    port = text_of("grafana", "datasources.yml")
    assert "http://prometheus:9090" in port and "9090" in str(SERVICES["prometheus"])


def test_only_the_proxy_is_open_to_the_world():
    networks = COMPOSE["networks"]
    assert networks["inside"]["internal"] and networks["store"]["internal"]
    open_ = {
        name
        for name, service in SERVICES.items()
        for port in service.get("ports", ())
        if not port.startswith("127.0.0.1:")
    }
    assert open_ == {"proxy"}
    assert {name for name, one in SERVICES.items() if "outside" in one["networks"]} == {"proxy"}
    assert {name for name, one in SERVICES.items() if "store" in one["networks"]} == {
        "limerank", "refresh", "valkey"
    }  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_bounded_pinned_and_read_only(name):
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} == set(limits)
    assert service["read_only"] and "no-new-privileges:true" in service["security_opt"]
    assert service["healthcheck"].get("test") or (
        name == "refresh" and service["healthcheck"]["disable"]
    )
    assert service.get("restart") == (None if name == "refresh" else "unless-stopped")
    if "build" not in service:
        assert re.fullmatch(r"[\w/]+:v?\d[\d.]*", service["image"]), "a version, not latest"
    for secret in service.get("secrets", ()):
        assert secret in COMPOSE["secrets"]
    for volume in service.get("volumes", ()):
        source = volume.partition(":")[0]
        known = source in COMPOSE["volumes"] or source in ("./shop", "./tls")
        assert known or (DEPLOY / source).exists(), source


def test_valkey_has_the_settings_that_a_store_asks_for():
    """And a server starts with the options of the compose file."""
    command = SERVICES["valkey"]["command"]
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert {f"--{name}": value for name, value in DURABLE.items()}.items() <= given.items()
    if PROGRAM is not None:
        with server(*command[1:]) as running, ValkeyStore(running.url) as store:
            assert store.check() == []


def instructions() -> list[list[tuple[str, str]]]:
    """Instructions of the Dockerfile and their arguments, for each stage."""
    text = re.sub(r"\\\n\s*", "", text_of("Dockerfile"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: list[list[tuple[str, str]]] = []
    for line in lines:
        name, _, rest = line.strip().partition(" ")
        assert name in {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "LABEL", "USER", "EXPOSE",
                        "HEALTHCHECK", "ENTRYPOINT", "CMD"}, line  # fmt: skip
        if name == "FROM":
            stages.append([])
        if name not in ("FROM",):
            stages[-1].append((name, rest))
        elif not re.fullmatch(r"python:3\.12-slim-bookworm( AS \w+)?", rest):
            raise AssertionError(rest)
    return stages


def test_the_image():
    build, final = instructions()
    steps = "\n".join(rest for name, rest in build if name == "RUN")
    assert "-c constraints.txt" in steps and "whl/cpu" in steps
    assert "sed -n '/^torch==/p' constraints.txt" in steps
    assert re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    copied = [word for name, rest in build if name == "COPY" for word in rest.split()[:-1]]
    assert "." not in copied
    ignored = text_of("Dockerfile.dockerignore").splitlines()
    copied += [rest.split()[-2] for name, rest in final if name == "COPY" and "--from" not in rest]
    for one in copied:
        assert (ROOT / one).exists() and f"!{one}" in ignored, one
    assert "*" in ignored and "!shop" not in ignored
    runs = " ".join(rest for name, rest in final if name == "RUN")
    assert not re.search(r"apt-get|pip |g\+\+", runs), "no tools of a build in the final image"
    found = dict(final)
    uid = re.search(r"--uid (\d+)", runs)
    assert uid and found["USER"] == f"{uid[1]}:{uid[1]}" and uid[1] != "0"
    assert "PYTHONDONTWRITEBYTECODE=1" in found["ENV"] and "/tmp/" in found["ENV"]
    check = json.loads(found["HEALTHCHECK"][found["HEALTHCHECK"].index("[") :])
    assert check[1:] == SERVICES["limerank"]["healthcheck"]["test"][2:]
    assert json.loads(found["ENTRYPOINT"]) == ["limerank"]
    assert "org.opencontainers.image.version" in found["LABEL"]


def test_the_health_check_asks_the_server():
    command = SERVICES["limerank"]["healthcheck"]["test"]
    assert command[:2] == ["CMD", "python"]
    with served(Stub()) as (port, _):
        code = command[3].replace("8000", str(port))
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode != 0, "the server has ended"


def kubernetes() -> dict[str, list[dict[str, Any]]]:
    """Kind -> pods of the manifests."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in [*objects("server.yaml", "refresh.yaml"), *LARGE]:
        of = one.get("spec", {})
        if one["kind"] == "CronJob":
            of = of["jobTemplate"]["spec"]
        if "template" in of:
            found.setdefault(one["kind"], []).append(of["template"]["spec"])
    return found


def objects(*names: str, folder: str = ".") -> list[dict[str, Any]]:
    """Kubernetes objects of some files."""
    texts = [text_of("kubernetes", folder, name) for name in names]
    return [one for text in texts for one in yaml.safe_load_all(text)]


LARGE = objects("storage.yaml", "shards.yaml", "front.yaml", "consume.yaml", folder="large")
"""Servers of shards, fronts, and readers of the event log."""


def large(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in LARGE if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_shards_fronts_and_readers_fit_together():
    """Names that refer to each other, numbers that have to agree, options that exist."""
    shards, front = large("StatefulSet", "limerank-shard"), large("Deployment", "limerank-front")
    readers = large("StatefulSet", "limerank-consume")
    for one in (shards, front, readers):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"] == labels
        service = large("Service", one["spec"].get("serviceName", "limerank-front"))
        assert service["spec"]["selector"] == labels
        ports = one["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert service["spec"]["ports"][0]["targetPort"] == ports[0]["name"]
        assert service["spec"]["ports"][0]["port"] == ports[0]["containerPort"]
    (server,) = front["spec"]["template"]["spec"]["containers"]
    (shard,) = shards["spec"]["template"]["spec"]["containers"]
    for args in (server["args"], shard["args"]):
        assert {one.partition("=")[0] for one in args[1:]} <= options_of_serve()
    count = shards["spec"]["replicas"]
    urls = [f"http://limerank-shard-{k}.limerank-shard:8000" for k in range(count)]
    assert f"--shards={','.join(urls)}" in server["args"]
    (pull,) = shards["spec"]["template"]["spec"]["initContainers"]
    assert f"-shard-$((POD_INDEX + 1))-of-{count} " in pull["command"][2]
    (reader,) = readers["spec"]["template"]["spec"]["containers"]
    command = reader["command"][2].split()
    assert command[:3] == ["exec", "limerank", "consume"]
    assert f"1))/{readers['spec']['replicas']}" in command
    known = {option for one in command_of("consume").params for option in one.opts}
    assert {one.partition("=")[0] for one in command if one.startswith("--")} <= known
    build = yaml.safe_load(text_of("kubernetes", "large", "kustomization.yaml"))
    settings, addresses = build["configMapGenerator"]
    named = dict(one.split("=", 1) for one in addresses["literals"])
    assert set(re.findall(r"\$\(([A-Z_]+)\)", str(server["args"]))) == {"STORE", "EVENT_LOG"}
    assert {"PUBLISHED", "STORE", "EVENT_LOG"} == set(named)
    assert parse_log(named["EVENT_LOG"].replace("@", ":password@")).topic == "shop-events"
    spec = load_spec(DEPLOY / "kubernetes" / "large" / settings["files"][0])
    own = load_spec(DEPLOY / "kubernetes" / "shop.toml")
    assert (spec.labels, spec.event_features) == (own.labels, own.event_features)


def test_pods_are_restricted():
    """What the standard "restricted" of Kubernetes asks for, a read-only root, and limits."""
    for pod in itertools.chain(*kubernetes().values()):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        volumes = {one["name"] for one in pod["volumes"]}
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {one["name"] for one in container["volumeMounts"]} <= volumes


def test_a_refused_model_is_not_tried_again():
    job = yaml.safe_load(text_of("kubernetes", "refresh.yaml"))["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    spec = job["jobTemplate"]["spec"]
    rule = spec["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and REFUSED in rule["onExitCodes"]["values"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "as podFailurePolicy needs it"
    unit = text_of("systemd", "limerank-refresh.service")
    assert f"RestartPreventExitStatus=2 {REFUSED}" in unit
    seen = re.search(r"\| (\d) \| refused", SHOP)
    assert seen and int(seen[1]) == REFUSED


def test_configurations_of_the_pods_are_those_of_the_page():
    """But for the names of files."""
    shop, loop = (tomllib.loads(code) for code in blocks(SHOP, "toml"))
    config = load_config(DEPLOY / "kubernetes" / "refresh.toml")
    assert config.export is not None and config.export.since == loop["export"]["since"]
    assert (str(config.home), str(config.export.folder)) == ("/shop/home", "/shop/logs")
    (container,) = kubernetes()["Deployment"][0]["containers"]
    assert f"--store={config.export.store}" in container["args"]
    assert f"--watch={config.home}/live" in container["args"]
    own = load_spec(DEPLOY / "kubernetes" / "shop.toml").model_dump(mode="json")
    page = validate(Spec, shop, "the page").model_dump(mode="json")
    for source in (*page["events"], page["items"]):
        source["files"] = [f"/shop/{name}" for name in source["files"]]
    assert own == page


BUILT = {
    ".": {
        "Namespace", "ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "CronJob"
    },
    "large": {
        "Namespace", "ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "StatefulSet",
        "PodDisruptionBudget",
    },
}  # fmt: skip


@pytest.mark.parametrize("folder", BUILT)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_the_manifests(folder):
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes" / folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {one["kind"] for one in built} == BUILT[folder]
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert len(images) == 1 and images.pop().endswith(":1")


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_reads_its_units(tmp_path):
    for path in (DEPLOY / "systemd").iterdir():  # with programs that are there
        text = re.sub(r"/opt/limerank/bin/[\w-]+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    units = sorted(tmp_path.iterdir())
    assert [one.name for one in units] == [
        "limerank-refresh.service", "limerank-refresh.timer", "limerank.service"
    ]  # fmt: skip
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "limerank" not in done.stderr, done.stderr


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_the_compose_file_is_one(tmp_path):
    shutil.copytree(DEPLOY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "secrets").mkdir()
    for name in COMPOSE["secrets"]:
        (tmp_path / "secrets" / name).touch()
    compose = ["docker", "compose"]
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose")
    command = [*compose, "-f", tmp_path / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
