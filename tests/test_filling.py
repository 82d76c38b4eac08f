"""A log's events in a store: the states are those of the log."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from limerank.filling import fill
from limerank.state import UserStates
from limerank.stores import SqliteStore
from tests.catalogues import folder, shop


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor", "sasrec"])
def test_the_store_s_users_are_the_log_s(model, tmp_path):
    of = shop(model)
    with SqliteStore(tmp_path / "events.db") as store:
        done = fill(store, of.data, base=folder() / "plain" / "log")
        assert done["users"] == len(of.data.user_ids)
        assert done["events"] == done["accepted"] == len(of.data.events["item"])
        assert fill(store, of.data)["accepted"] == 0, "filling again changes nothing"
        states = UserStates(of.run, of.index, store)
        # The last request of each user, its own events taken away: what the model was told then.
        for user in range(0, len(of.data.user_ids), 5):
            first, last = np.searchsorted(of.data.requests["user"], [user, user + 1])
            if first == last:
                continue
            request = int(last - 1)
            batch = of.data.batch(np.array([request]))
            shown = of.data.requests["first"][request]
            now = int(of.data.events["time"][shown])
            with SqliteStore(tmp_path / f"{user}.db") as past:
                held = store.held(of.data.user_ids[user])
                past.append([event for event in held.events if event.time < now])
                past.set_features(of.data.user_ids[user], held.features)
                ready = UserStates(of.run, of.index, past).ready(of.data.user_ids[user], now=now)
            with torch.inference_mode():
                vectors = of.run.ranker.item_vectors(batch.items)
                expected = of.run.ranker.encode_users(batch.users, vectors)
            for one, other in zip(ready.state, expected, strict=True):
                if one.is_floating_point():
                    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert states.ready(of.data.user_ids[0]).known


def test_the_command(call, tmp_path):
    of = shop("lime-mha")
    status, told, _ = call(
        "fill", tmp_path / "events.db", "--data", of.data.path, "--quiet",
        "--base", folder() / "plain" / "log",
    )  # fmt: skip
    count = len(of.data.events["item"])
    assert status == 0 and f"{count:,} new of {count:,} events" in told
    with SqliteStore(tmp_path / "events.db") as store:
        users = pl.read_csv(folder() / "plain" / "log" / "users.csv")
        held = store.held(of.data.user_ids[0])
        assert held.features.keys() <= set(users.columns)
