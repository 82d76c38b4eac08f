"""The commands that would reproduce the paper's data sets, run on small files of their layouts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_page import PAPER
from tests.layouts import (
    BEIJING_MAY_6,
    DAY,
    HOUR,
    KUAIRAND_LOG,
    KUAIRAND_USERS,
    KUAIRAND_VIDEOS,
    T0,
    write,
)

USERS, ITEMS = 30, 25


def kuairand(folder: Path) -> None:
    """KuaiRand-1K as it is unpacked: two standard logs, users and videos."""
    rng = np.random.default_rng(0)
    halves: list[list[str]] = [[], []]
    for user in range(USERS):
        for n in range(60):
            time = T0 + user * 7 + int(n * 9 * HOUR + rng.integers(0, HOUR))
            click, video = int(rng.random() < 0.5), 100 + int(rng.integers(0, ITEMS))
            play = int(rng.exponential(9000)) * click
            halves[n >= 30].append(
                f"{user},{video},20220410,1700,{time},{click},0,0,0,0,0,"
                f"{int(play > 7000)},{play},10000,0,0,0,0,{n % 3}"
            )
    write(folder / "data" / "log_standard_4_08_to_4_21_1k.csv", KUAIRAND_LOG, *halves[0])
    write(folder / "data" / "log_standard_4_22_to_5_08_1k.csv", KUAIRAND_LOG, *halves[1])
    ones = ",".join("0" * 18)
    write(
        folder / "data" / "user_features_1k.csv",
        KUAIRAND_USERS,
        *(
            f'{user},full_active,0,0,1,5,"(0,10]",1,"[1,10)",3,"[1,5)",80,61-90,{ones}'
            for user in range(USERS)
        ),
    )
    write(
        folder / "data" / "video_features_basic_1k.csv",
        KUAIRAND_VIDEOS,
        *(
            f"{100 + n},{n % 6},NORMAL,2022-04-10,Web,0.0,10000.0,720.0,1280.0,11,9.0,{n % 4}"
            for n in range(ITEMS)
        ),
    )


def taobao(folder: Path) -> None:
    """Taobao-Ad: eight days of ads, and shopping behaviour before and during them."""
    rng = np.random.default_rng(0)
    shown, done = [], []
    for user in range(1, USERS + 1):
        for day in range(8):
            for _ in range(4):
                time = BEIJING_MAY_6 + day * DAY + int(rng.integers(20_000, 80_000))
                click = int(rng.random() < 0.3)
                ad = int(rng.integers(1, ITEMS + 1))
                shown.append(f"{user},{time},{ad},430548_1007,{1 - click},{click}")
                done.append(f"{user},{time - 9000},pv,{ad % 5 + 1},{ad % 7 + 1}")
    write(folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", *shown)
    write(folder / "behavior_log.csv", "user,time_stamp,btag,cate,brand", *done)
    write(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        *(f"{ad},{ad % 5 + 1},{ad % 3},{ad % 4},{ad % 7 + 1},{9.5 * ad}" for ad in range(1, 26)),
    )
    write(
        folder / "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level ",
        *(f"{user},{user % 9},5,{user % 2 + 1},5,,3,0,3" for user in range(1, USERS + 1)),
    )


@pytest.mark.parametrize("name", ["kuairand", "taobao-ad"])
def test_the_commands_of_the_page_run(name, tmp_path, call, monkeypatch):
    """Each command as it stands on the page, in a folder that holds the files."""
    monkeypatch.chdir(tmp_path)
    kuairand(tmp_path / "KuaiRand-1K")
    taobao(tmp_path / "TAOBAO")
    commands = re.search(r"```\n(.*?)```", PAPER, re.S)
    assert commands is not None
    prepare = next(line for line in commands[1].splitlines() if f"prepare {name}" in line)
    status, output, error = call(*shlex.split(prepare)[1:], "--quiet")
    assert status == 0, error
    data = shlex.split(prepare)[-1]
    rest = [line for line in commands[1].splitlines() if "limerank prepare" not in line]
    assert len(rest) == 2
    for line in rest:
        words = shlex.split(line.replace("kuairand-1k", Path(data).name))[1:]
        words += ["--set", "epochs=1", "--set", "blocks=1"] if words[0] == "train" else []
        status, output, error = call(*words, "--quiet")
        assert status == 0, error
    assert "click" in output and "test split" in output
    spec = json.loads(Path(data, "dataset.json").read_text())["spec"]
    assert spec["history"]["length"] == {"kuairand": 256, "taobao-ad": 50}[name]
