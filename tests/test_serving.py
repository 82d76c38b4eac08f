"""The server as a process: started by the command, stopped, killed, started again."""

from __future__ import annotations

import shutil
import signal
import threading
import time

import httpx2 as httpx

from tests.catalogues import shop
from tests.running import event


def test_it_serves_and_stops(start, tmp_path):
    server = start(tmp_path, "--open")
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/events", json=event(7, 1)).json()["accepted"] == 1
        assert client.post("/v1/rank", json={"user": 7}).json()["events"] == 1
    assert server.stop() in (0, -signal.SIGTERM)
    log = (tmp_path / "log").read_text()
    assert '"route":"POST /v1/rank"' in log and '"user"' not in log


def test_paths_that_are_words_are_not_hidden(start, tmp_path):
    server = start(tmp_path, "--index", "index", "--store", "events.db", "--no-keys")
    answer = httpx.post(f"{server.url}/v1/rank", json={"user": 1, "candidates": [10**9]})
    assert "1 of 1 candidates are not in the index" in answer.text
    assert (tmp_path / "events.db").exists()


def test_keys_of_the_environment(start, tmp_path):
    secret = "k" * 32
    server = start(tmp_path, env={"LIMERANK_WRITE_KEYS": secret})
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/model").status_code == 401
        held = {"Authorization": f"Bearer {secret}"}
        assert client.get("/v1/model", headers=held).status_code == 200
    server.stop()
    assert secret not in (tmp_path / "log").read_text()


def test_it_says_what_it_needs(call, tmp_path):
    of = shop("lime-mha")
    given = ["serve", "--run", of.run.path, "--index", of.index.path]
    for wrong, what in (
        ([], "needs keys"),
        (["--open", "--host", "0.0.0.0"], "loopback"),
        (["--open", "--store", tmp_path / "e.db", "--state", "streamed"], "streamed"),
    ):
        status, output, error = call(*given, *wrong)
        assert status != 0 and what in " ".join((output + error).split())


def test_reloading_under_load_fails_no_request(start, tmp_path):
    server, of = start(tmp_path, "--open"), shop("lime-xor")
    shutil.copytree(of.index.path, tmp_path / "other")
    codes, done = [], threading.Event()

    def ask():
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                codes.append(client.post("/v1/rank", json={"user": 1, "k": 3}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    first = shop("lime-mha")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for run, index in (
            (of.run.path, tmp_path / "other"),
            (of.run.path, of.index.path),  # the same run: what is in memory stays
            (first.run.path, tmp_path / "index"),
        ):
            answer = client.post("/v1/admin/reload", json={"run": str(run), "index": str(index)})
            assert answer.status_code == 200, answer.text
        while len(codes) < 60:
            done.wait(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert set(codes) == {200}


def becomes(client, model):
    limit = time.monotonic() + 30
    while client.get("/v1/model").json()["model"] != model:
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_what_is_watched_is_loaded(start, tmp_path):
    of, watched = shop("lime-xor"), tmp_path / "serving.json"
    server = start(tmp_path, "--open", "--watch", watched)
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/model").json()["model"] == "lime-mha"
        watched.write_text("{")  # half written: logged, and nothing changes
        watched.write_text(f'{{"run": "{of.run.path}", "index": "{of.index.path}"}}')
        becomes(client, "lime-xor")


def test_links_in_a_watched_folder_are_followed(start, tmp_path):
    mine, other, live = shop("lime-mha"), shop("lime-xor"), tmp_path / "live"
    live.mkdir()
    (live / "run").symlink_to(mine.run.path)
    server = start(tmp_path, "--open", "--watch", live)
    (live / "index").symlink_to(tmp_path / "index")
    with httpx.Client(base_url=server.url) as client:
        for name, to in (("run", other.run.path), ("index", other.index.path)):
            (tmp_path / "new").symlink_to(to)
            (tmp_path / "new").replace(live / name)  # the run first: refused with the old index
            time.sleep(2.5)
            assert client.post("/v1/rank", json={"user": 1, "k": 3}).status_code == 200
        becomes(client, "lime-xor")
    assert "the served model stays" in (tmp_path / "log").read_text()
