"""Small files as the publishers of official layouts write them, and the contents of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from limerank.data.dataset import Dataset

DATA = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, *lines: str, ending: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + ending for line in lines), encoding="utf-8")


def events(data: Dataset) -> pl.DataFrame:
    """All events with external ids, in the dataset's order."""
    columns = {name: np.asarray(values) for name, values in data.events.items()}
    columns["item"] = data.item_ids[columns["item"]]
    return pl.DataFrame(columns)


def requests(data: Dataset) -> list[dict[str, Any]]:
    """Requests in order of time: user, time, split, impressions and history as external ids."""
    found = []
    columns = {name: np.asarray(values) for name, values in data.requests.items()}
    for row in range(len(columns["user"])):
        first, count = int(columns["first"][row]), int(columns["count"][row])
        held = np.arange(columns["history_start"][row], columns["history_end"][row])
        held = held if data.retained is None else data.retained[held]
        shown = np.arange(first, first + count)
        found.append(
            {
                "user": data.user_ids[columns["user"][row]],
                "time": int(data.events["time"][first]),
                "split": ("train", "validation", "test")[columns["split"][row]],
                "items": list(data.item_ids[data.events["item"][shown]]),
                "rows": shown,
                "history": list(data.item_ids[data.events["item"][held]]),
                "held": held,
            }
        )
    return sorted(found, key=lambda request: (request["time"], str(request["user"])))


def labels(data: Dataset, name: str, rows: Sequence[int]) -> list[float]:
    return [float(value) for value in data.events[f"label_{name}"][rows]]


def categories(data: Dataset, name: str, rows: Sequence[int]) -> list[str | None]:
    """Values of a categorical event feature."""
    vocabulary = pq.read_table(data.path / "vocab" / f"event_{name}.parquet").to_pylist()
    values = {entry["code"]: entry["value"] for entry in vocabulary}
    return [values.get(int(code)) for code in data.events[f"feature_{name}"][rows]]


def content(data: Dataset, kind: str, row: int) -> dict[str, set[str]]:
    """Known categories of one item or user, by feature."""
    table = data.items if kind == "item" else data.users
    tokens = set(table.tokens[table.offsets[row] : table.offsets[row + 1]].tolist())
    found = {}
    for feature in data.encoding[f"{kind}s"]["features"]:
        if feature["kind"] == "categorical":
            path = data.path / "vocab" / f"{kind}_{feature['name']}.parquet"
            found[feature["name"]] = {
                str(entry["value"])
                for entry in pq.read_table(path).to_pylist()
                if feature["start"] + entry["code"] in tokens
            }
    return found


def item_row(data: Dataset, item: Any) -> int:
    return int(np.flatnonzero(data.item_ids == item)[0])


def user_row(data: Dataset, user: Any) -> int:
    return int(np.flatnonzero(data.user_ids == user)[0])


def dropped(data: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = data.manifest["summary"]["dropped"]
    return found


KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)


KUAIRAND_USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{n}" for n in range(18))
)


KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)


T0 = 1_649_600_000_000


HOUR = 3_600_000


def kuairand(folder: Path) -> None:
    """One user, ten hours, one impression an hour; then a second user and dirt."""
    rows = [
        # like on the third, a long play on the second, no length on the fourth
        f"1,{100 + n % 3},20220410,1700,{T0 + n * HOUR},{n % 2},{int(n == 2)},0,0,0,0,"
        f"{int(n == 1)},{(500_000 if n == 1 else 5_000)},{(0 if n == 3 else 10_000)},"
        f"0,0,0,0,{n % 2}"
        for n in range(10)
    ]
    second = f"2,102,20220410,1700,{T0 + 60_000},1,0,0,0,0,0,0,4000,8000,0,77,0,0,4"
    negative = f"2,102,20220410,1700,{T0 + 70_000},1,0,0,0,0,0,0,-4,8000,0,0,0,0,4"
    write(folder / "log_standard_4_08_to_4_21_1k.csv", KUAIRAND_LOG, *rows[:6], second, rows[0])
    write(folder / "log_standard_4_22_to_5_08_1k.csv", KUAIRAND_LOG, *rows[6:], negative)
    write(
        folder / "log_random_4_22_to_5_08_1k.csv",
        KUAIRAND_LOG,
        f"1,109,20220425,1700,{T0 + 4 * HOUR + 5},1,0,0,0,0,0,0,1,2,0,0,0,1,1",
    )
    ones = ",".join("0" * 18)
    write(
        folder / "user_features_1k.csv",
        KUAIRAND_USERS,
        f'1,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,{ones}',
        f'2,high_active,0,1,1,5,"(0,10]",1,"[1,10)",3,"[1,5)",80,61-90,{ones}',
    )
    write(
        folder / "video_features_basic_1k.csv",
        KUAIRAND_VIDEOS,
        '100,7,NORMAL,2022-04-10,LongImport,0.0,10000.0,720.0,1280.0,9155697141,9.0,"12,65"',
        "101,7,AD,2022-04-10,Web,0.0,10000.0,720.0,1280.0,11,9.0,12",
        "102,8,NORMAL,2022-04-09,Web,0.0,,720.0,1280.0,11,,",
        "103,9,NORMAL,2022-04-09,Web,0.0,5000.0,720.0,1280.0,11,4.0,3",
    )
    write(folder / "video_features_statistic_1k.csv", "video_id,counts", "100,5")


def slice_of(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: this slice is not part of the project")
    return folder


BEIJING_MAY_6 = 1_494_000_000


DAY = 86_400


def taobao(folder: Path, user: str = "user") -> None:
    write(
        folder / "raw_sample.csv",
        f"{user},time_stamp,adgroup_id,pid,nonclk,clk",
        f"1,{BEIJING_MAY_6 + 100},1,430548_1007,0,1",
        f"1,{BEIJING_MAY_6 + 100},2,430548_1007,1,0",
        f"1,{BEIJING_MAY_6 + DAY},2,430539_1007,1,0",
        f"2,{BEIJING_MAY_6 + 2 * DAY},1,430548_1007,1,0",
        f"1,{BEIJING_MAY_6 + 6 * DAY},2,430539_1007,0,1",
        f"1,{BEIJING_MAY_6 + 7 * DAY},1,430539_1007,1,0",
    )
    write(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        "1,6406,83237,1,95471,170.0",
        "2,392,83237,1,NULL,199.0",
        "3,392,9,4,95471,8.5",
    )
    write(
        folder / "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level ",
        "1,0,5,2,5,,3,0,3",
        "2,90,10,1,4,1,2,1,",
    )
    write(
        folder / "behavior_log.csv",
        f"{user},time_stamp,btag,cate,brand",
        f"1,{BEIJING_MAY_6 - 50},pv,6406,95471",
        f"1,{BEIJING_MAY_6 - 40},buy,392,95471",
        f"2,{BEIJING_MAY_6 + DAY},cart,6406,95471",
        f"1,{BEIJING_MAY_6 + 2 * DAY},fav,7000,12",
    )


def ml_1m(folder: Path) -> None:
    start = 978_300_000
    write(
        folder / "ratings.dat",
        *(f"1::{1 + n}::{1 + n % 5}::{start + n * 7200}" for n in range(10)),
        f"2::3::5::{start + 100}",
    )
    movies = [
        "1::Toy Story (1995)::Animation|Children's|Comedy",
        "2::2001: A Space Odyssey (1968)::Drama",
        "3::Misérables, Les (1995)::Drama|Musical",
    ]
    (folder / "movies.dat").write_bytes("".join(m + "\n" for m in movies).encode("latin-1"))
    write(folder / "users.dat", "1::F::1::10::48067", "2::M::56::16::70072")


NEWS = (
    'N1\tsports\tsoccer\tThe "Big" Game\tAn abstract\thttps://x\t'
    '[{"Label": "FC", "Type": "O", "WikidataId": "Q1", "SurfaceForms": ["FC"]}]\t[]',
    "N2\tnews\tnewsworld\tStorm hits coast\t\thttps://x\t[]\t"
    '[{"Label": "A", "WikidataId": "Q1"}, {"Label": "B", "WikidataId": "Q2"}]',
    "N3\tsports\tgolf\tGolf news\tAbstract\thttps://x\t\t",
)


def mind(folder: Path) -> None:
    train, dev = folder / "MINDsmall_train", folder / "MINDsmall_dev"
    write(
        train / "behaviors.tsv",
        "1\tU1\t11/12/2019 8:55:22 AM\tN1 N2\tN3-0 N2-1",
        "2\tU2\t11/13/2019 12:05:00 PM\t\tN1-1 N3-0",
        "3\tU1\t11/14/2019 12:00:01 AM\tN1 N2\tN1-0",
    )
    write(
        dev / "behaviors.tsv",
        "1\tU1\t11/15/2019 11:59:59 PM\tN1 N2 N3\tN3-1 N4-0",
        "2\tU9\t11/15/2019 1:00:00 AM\tN2\tN1 N3",
    )
    write(train / "news.tsv", *NEWS)
    write(dev / "news.tsv", NEWS[1], "N4\tnews\tnewsus\tFresh\tAbstract\thttps://x\t[]\t[]")
