"""What stands in front of a server, as it is shipped: its configuration is right, and it does what
the documents say. Needs nginx for most of it: apt-get install nginx-light."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.test_hostile import KEYS, Stub, served

DEPLOY = Path(__file__).parents[1] / "deploy"
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


def test_what_is_shipped_holds_together():
    """What one file says of another, without the programs that read them."""
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    conf = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert conf.count("{") == conf.count("}")
    assert "server limerank:8000;" in conf and "--port=8000" in compose
    (subnet,) = re.findall(r"subnet: (\S+)", compose)
    assert f"--proxy={subnet}" in compose
    assert "internal: true" in compose and "proxy_set_header X-Forwarded-For $remote_addr;" in conf
    options = set(re.findall(r"- --([a-z]+)=", compose))
    from limerank.cli.serve import serve

    assert options <= set(serve.__annotations__), "options that the command has"


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_the_compose_file_is_one(tmp_path):
    for name in ("compose.yaml", "nginx.conf"):
        shutil.copy(DEPLOY / name, tmp_path)
    (tmp_path / "keys").touch()
    compose = ["docker", "compose"]
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose")
    command = [*compose, "-f", tmp_path / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
