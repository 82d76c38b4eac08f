"""Readers of official layouts: tiny files as the publishers write them, and the slices in shared/.

Each layout is read into a Spec and prepared from end to end; then the values of the dataset are
compared with what the files say.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.protocol import Split
from limerank.data.readers import LAYOUTS, layout, read
from limerank.data.readers.taobao_ad import pseudo_items
from limerank.data.spec import Checks, Spec
from limerank.errors import DataError, SpecError
from tests.layouts import (
    DATA,
    HOUR,
    NEWS,
    T0,
    categories,
    content,
    dropped,
    events,
    item_row,
    kuairand,
    labels,
    mind,
    ml_1m,
    requests,
    slice_of,
    taobao,
    user_row,
    write,
)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Dataset]:
    def make(name: str, folder: Path, **options: Any) -> Dataset:
        spec, base = read(name, folder, tmp_path / "work", **options)
        # A handful of rows with one bad one is past the default share.
        spec = spec.model_copy(update={"checks": Checks(max_bad_share=0.2)})
        prepare(spec, tmp_path / "out", base=base, quiet=True)
        return Dataset(tmp_path / "out")

    return make


# All readers


def test_names_and_options() -> None:
    assert sorted(LAYOUTS) == [
        "amazon-reviews",
        "kuairand",
        "mind",
        "movielens",
        "retailrocket",
        "taobao-ad",
    ]
    for name, one in LAYOUTS.items():
        assert one.name == name
        assert {"history", "split"} <= one.options().keys()
    assert LAYOUTS["kuairand"].options()["history"] == 256
    assert LAYOUTS["taobao-ad"].options()["history"] == 50


def test_unknown_reader_and_option(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"no layout 'netflix'; expected one of amazon-reviews, kuair"
    ):
        read("netflix", tmp_path, tmp_path / "work")
    with pytest.raises(
        SpecError, match=r"the layout mind has no option tags; expected one of history"
    ):
        read("mind", tmp_path, tmp_path / "work", tags=True)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_wrong_folder_lists_what_was_expected_and_found(name: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "readme.txt", "hello")
    (tmp_path / "in" / "sub").mkdir()
    with pytest.raises(DataError, match=r"expected .*(csv|tsv).*; found readme.txt, sub/"):
        read(name, tmp_path / "in", tmp_path / "work")
    with pytest.raises(DataError, match="is not a folder"):
        read(name, tmp_path / "nowhere", tmp_path / "work")


def test_wrong_split() -> None:
    assert layout.split_by("position") == Split(by="position")
    assert layout.split_by("leave-last") == Split(leave_last=1)
    assert layout.split_by(Split(train=0.5)) == Split(train=0.5)
    with pytest.raises(SpecError, match="split is 'official', expected one of time, position"):
        layout.split_by("official")


def test_pieces_keep_every_line_whatever_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["a,b", *(f"{n},{n * n}" for n in range(200)), "x,1", "1,2,3", "7"]
    write(tmp_path / "plain.csv", *lines, ending="\r\n")
    with gzip.open(tmp_path / "packed.csv.gz", "wb") as file:
        file.write("\n".join(lines).encode())
    expected = [*((n, n * n) for n in range(200)), (None, 1), (None, None), (7, None)]
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr(layout, "PIECE_BYTES", size)
        for name in ("plain.csv", "packed.csv.gz"):
            with layout.Bar("", quiet=True) as bar:
                frames = layout.pieces(
                    tmp_path / name,
                    {"a": pl.Int64, "b": pl.Int64},
                    separator=",",
                    skip_header=True,
                    bar=bar,
                )
                assert pl.concat(frames).rows() == expected, (size, name)


# KuaiRand


def test_kuairand_describes_the_official_layout(tmp_path: Path) -> None:
    kuairand(tmp_path / "data")
    spec, base = read("kuairand", tmp_path, tmp_path / "work")
    assert base == tmp_path
    assert spec.name == "kuairand-1k"
    assert spec.events[0].files == (
        "data/log_standard_4_08_to_4_21_1k.csv",
        "data/log_standard_4_22_to_5_08_1k.csv",
    )
    assert [label.name for label in spec.labels] == ["click", "watch", "long_view"]
    assert {feature.name: feature.when for feature in spec.event_features} == {
        **dict.fromkeys(
            ("like", "follow", "comment", "forward", "hate", "profile_enter", "comment_stay"),
            "outcome",
        ),
        "tab": "context",
    }
    assert spec.items is not None and spec.users is not None
    assert spec.items.files == ("data/video_features_basic_1k.csv",)
    assert not {"upload_dt", "visible_status"} & {f.name for f in spec.items.features}
    assert spec.history.length == 256 and spec.history.keep is None
    assert spec.split == Split(train=0.8, validation=0.1)
    assert not (tmp_path / "work").exists()


def test_kuairand_options(tmp_path: Path) -> None:
    kuairand(tmp_path)
    spec, _ = read(
        "kuairand",
        tmp_path,
        tmp_path / "work",
        history=7,
        split="position",
        labels=("long_view", "like"),
        random=True,
    )
    assert [label.name for label in spec.labels] == ["long_view", "like"]
    assert {"click", "watch"} <= {feature.name for feature in spec.event_features}
    assert len(spec.events[0].files) == 3
    assert spec.history.length == 7 and spec.split.by == "position"
    with pytest.raises(SpecError, match="no label 'share'; expected watch or one of click"):
        read("kuairand", tmp_path, tmp_path / "work", labels=("share",))


def test_kuairand_without_a_column_says_which(tmp_path: Path) -> None:
    write(tmp_path / "log_mine.tsv", "user_id\tvideo_id\ttime_ms\tlong_view", "1\t2\t3\t1")
    with pytest.raises(DataError, match=r"log_mine.tsv has no column is_click for the label click"):
        read("kuairand", tmp_path, tmp_path / "work")
    spec, _ = read("kuairand", tmp_path, tmp_path / "work", labels=("long_view",))
    assert spec.items is None and spec.users is None and spec.event_features == ()


def test_kuairand_prepared(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    kuairand(tmp_path / "in")
    data = prepared("kuairand", tmp_path / "in")
    assert data.manifest["counts"]["events"] == 11
    found = requests(data)
    mine = [request for request in found if request["user"] == 1]
    assert [request["items"] for request in mine] == [[100 + n % 3] for n in range(10)]
    assert [request["history"] for request in mine] == [
        [100 + n % 3 for n in range(k)] for k in range(10)
    ]
    assert [request["time"] for request in mine] == [T0 + n * HOUR for n in range(10)]
    rows = [int(request["rows"][0]) for request in mine]
    assert labels(data, "click", rows) == [n % 2 for n in range(10)]
    assert labels(data, "long_view", rows) == [int(n == 1) for n in range(10)]
    assert labels(data, "watch", rows) == [300.0 if n == 1 else 5.0 for n in range(10)]
    ratio = data.events["ratio_watch"][rows]
    assert np.isnan(ratio[3]) and ratio[0] == pytest.approx(0.5)
    assert categories(data, "like", rows) == ["1" if n == 2 else "0" for n in range(10)]
    assert categories(data, "tab", rows[:2]) == ["0", "1"]
    splits = {request["time"]: request["split"] for request in found}
    assert [splits[T0 + n * HOUR] for n in (0, 9)] == ["train", "test"]
    assert content(data, "item", item_row(data, 100))["tag"] == {"12", "65"}
    assert content(data, "item", item_row(data, 100))["video_type"] == {"NORMAL"}
    assert content(data, "item", item_row(data, 101))["author_id"] == {"7"}
    assert content(data, "item", item_row(data, 102))["tag"] == set()
    assert 103 in data.item_ids, "a video of the table that nobody saw is in the catalogue"
    assert content(data, "user", user_row(data, 1))["is_live_streamer"] == {"-124"}
    assert content(data, "user", user_row(data, 2))["fans_user_num_range"] == {"[1,10)"}
    assert sum(dropped(data).values()) == 2, "the duplicate and the negative duration"


def test_kuairand_lengths_from_the_log(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    kuairand(tmp_path / "in")
    spec, _ = read("kuairand", tmp_path / "in", tmp_path / "work", log_durations=True)
    assert spec.items is not None
    table = pl.read_parquet(spec.items.files[0])
    lengths = dict(table.select("video_id", "video_duration").rows())
    assert lengths == {100: 10000.0, 101: 10000.0, 102: 10000.0, 103: 5000.0}
    assert set(table.columns) == {"video_id", *(f.column for f in spec.items.features)}
    (tmp_path / "in" / "video_features_basic_1k.csv").unlink()
    data = prepared("kuairand", tmp_path / "in", log_durations=True)
    assert data.items.numeric.shape == (3, 1)


def test_kuairand_slice(prepared: Callable[..., Dataset]) -> None:
    data = prepared("kuairand", slice_of("kuairand_slice"))
    assert len(data.user_ids) >= 664
    assert data.manifest["counts"]["events"] == 41_828 - sum(dropped(data).values())
    assert sum(dropped(data).values()) >= 116, "exact duplicates at least"
    assert np.mean(data.events["label_click"]) == pytest.approx(0.657, abs=0.003)
    assert np.mean(data.events["label_long_view"]) == pytest.approx(0.462, abs=0.003)
    assert np.isnan(data.events["ratio_watch"]).sum() == pytest.approx(7_738, abs=130)
    known = np.flatnonzero(data.requests["history_end"] > data.requests["history_start"])
    newest = data.events["time"][data.requests["history_end"][known] - 1]
    assert len(known) and (newest < data.events["time"][data.requests["first"][known]]).all()


# Taobao-Ad


SEEN, BOUGHT, LATER = -6406000095471, -392000095471, -7000000000012


def test_taobao_describes_the_official_layout(tmp_path: Path) -> None:
    taobao(tmp_path / "in")
    spec, _ = read("taobao-ad", tmp_path / "in", tmp_path / "work")
    assert [source.shown for source in spec.events] == [True, False]
    assert spec.events[0].files == ("raw_sample.csv",)
    assert [feature.name for feature in spec.event_features] == ["pid", "btag"]
    assert spec.history.length == 50 and spec.history.keep == "click"
    assert spec.split.test_from == "2017-05-13T00:00:00+08:00"
    assert spec.users is not None
    assert spec.users.features[-1].column == "new_user_class_level ", "the official header's blank"
    assert spec.items is not None
    table = pl.read_parquet(spec.items.files[0])
    assert spec.items.candidate == "candidate"
    assert table["candidate"].to_list() == [True] * 3 + [False] * 3
    assert sorted(table["item_id"].to_list()) == sorted([1, 2, 3, SEEN, BOUGHT, LATER])
    by_id = {row["item_id"]: row for row in table.to_dicts()}
    assert (by_id[SEEN]["cate_id"], by_id[SEEN]["brand"]) == (6406, 95471)
    assert by_id[2]["brand"] is None and by_id[LATER]["price"] is None
    rows = pl.read_parquet(spec.events[1].files[0])
    assert rows["item_id"].to_list() == [SEEN, BOUGHT, SEEN, LATER]
    assert rows["btag"].to_list() == ["pv", "buy", "cart", "fav"]


def test_taobao_other_headers_and_options(tmp_path: Path) -> None:
    taobao(tmp_path / "in", user="userid")
    (tmp_path / "in" / "behavior_log.csv").unlink()
    with pytest.raises(DataError, match=r"missing: behavior_log.csv\); found ad_feature.csv"):
        read("taobao-ad", tmp_path / "in", tmp_path / "work")
    spec, _ = read(
        "taobao-ad",
        tmp_path / "in",
        tmp_path / "work",
        behaviours=False,
        unclicked=True,
        split="time",
    )
    assert [source.user for source in spec.events] == ["userid"]
    assert spec.history.keep is None and spec.split == Split()


def test_pseudo_items_are_negative_and_distinct() -> None:
    frame = pl.DataFrame(
        {
            "cate": [1, 1, 2, 1, None, 0, 0, -3, 10**9, 1],
            "brand": [0, None, 0, 7, 7, 7, 0, 1, 999_999_999, 10**9],
        }
    )
    ids = frame.select(pseudo_items(pl.col("cate"), pl.col("brand")).alias("id"))["id"].to_list()
    assert ids == [
        -1_000_000_000,
        -1_000_000_000,
        -2_000_000_000,
        -1_000_000_007,
        None,
        -7,
        None,
        None,
        -1_000_000_000_999_999_999,
        None,
    ]


def test_taobao_prepared(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    taobao(tmp_path / "in")
    data = prepared("taobao-ad", tmp_path / "in")
    found = requests(data)
    assert [(r["user"], r["split"]) for r in found] == [
        (1, "train"),
        (1, "train"),
        (2, "train"),
        (1, "validation"),
        (1, "test"),
    ]
    assert sorted(found[0]["items"]) == [1, 2]
    assert found[0]["history"] == [SEEN, BOUGHT]
    assert found[1]["history"] == [SEEN, BOUGHT, 1], "the clicked ad, not the other"
    assert found[2]["history"] == [SEEN]
    assert found[3]["history"] == [SEEN, BOUGHT, 1, LATER]
    assert found[4]["history"] == [SEEN, BOUGHT, 1, LATER, 2]
    assert categories(data, "btag", found[4]["held"]) == ["pv", "buy", "ad", "fav", "ad"]
    assert categories(data, "pid", found[1]["rows"]) == ["430539_1007"]
    assert labels(data, "click", found[3]["rows"]) == [1.0]
    assert not {SEEN, BOUGHT, LATER} & {item for request in found for item in request["items"]}
    seen = content(data, "item", item_row(data, SEEN))
    assert seen["cate_id"] == content(data, "item", item_row(data, 1))["cate_id"] == {"6406"}
    assert content(data, "user", user_row(data, 2))["new_user_class_level"] == set()
    assert content(data, "user", user_row(data, 1))["final_gender_code"] == {"2"}


def test_taobao_behaviours_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taobao(tmp_path / "in")
    monkeypatch.setattr(layout, "PIECE_BYTES", 32)
    spec, _ = read("taobao-ad", tmp_path / "in", tmp_path / "work", quiet=False)
    assert pl.read_parquet(spec.events[1].files[0]).height == 4
    assert spec.items is not None
    assert pl.read_parquet(spec.items.files[0]).height == 6
    assert "behaviours" in capsys.readouterr().err


# MovieLens


def test_movielens_1m(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    ml_1m(tmp_path / "ml-1m")
    data = prepared("movielens", tmp_path / "ml-1m", title_words=True)
    assert data.name == "ml-1m"
    found = requests(data)
    mine = [request for request in found if request["user"] == 1]
    assert [request["items"] for request in mine] == [[1 + n] for n in range(10)]
    assert [len(request["history"]) for request in mine] == list(range(10))
    rows = [int(request["rows"][0]) for request in mine]
    assert labels(data, "like", rows) == [0, 0, 0, 1, 1] * 2
    assert categories(data, "rating", rows[:5]) == ["1", "2", "3", "4", "5"]
    assert mine[3]["time"] == (978_300_000 + 3 * 7200) * 1000
    assert [request["split"] for request in mine][-3:] == ["validation", "test", "test"]
    odyssey = content(data, "item", item_row(data, 2))
    assert odyssey["genres"] == {"Drama"} and odyssey["year"] == {"1968"}
    assert content(data, "item", item_row(data, 3))["genres"] == {"Drama", "Musical"}
    assert content(data, "user", user_row(data, 1)) == {
        "gender": {"F"},
        "age": {"1"},
        "occupation": {"10"},
        "region": {"4"},
    }


def test_movielens_as_positives(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    ml_1m(tmp_path / "ml-1m")
    data = prepared("movielens", tmp_path / "ml-1m", positives=True, split="leave-last")
    assert data.tasks == ("next",)
    assert (data.events["label_next"] == 1).all()
    assert "feature_rating" in data.encoder.columns


def test_movielens_titles_in_latin_1_and_in_utf_8(tmp_path: Path) -> None:
    ml_1m(tmp_path / "in")
    spec, _ = read("movielens", tmp_path / "in", tmp_path / "work", title_words=True)
    assert spec.items is not None
    assert pl.read_parquet(spec.items.files[0])["words"].to_list() == [
        ["toy", "story"],
        ["2001", "a", "space", "odyssey"],
        ["misérables", "les"],
    ]
    (tmp_path / "in" / "movies.dat").write_text("1::Misérables, Les (1995)::Drama\nbad::line\n")
    spec, _ = read("movielens", tmp_path / "in", tmp_path / "work", title_words=True)
    assert spec.items is not None
    table = pl.read_parquet(spec.items.files[0])
    assert table["words"].to_list() == [["misérables", "les"], None]
    assert table["movie_id"].to_list() == [1, None]


def test_movielens_csv(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    write(
        tmp_path / "in" / "ratings.csv",
        "userId,movieId,rating,timestamp",
        *(f"{1 + n % 2},{10 + n},{0.5 + n / 2},{964_982_000 + 60 * n}" for n in range(10)),
        "1,99,,964983000",
    )
    write(
        tmp_path / "in" / "movies.csv",
        "movieId,title,genres",
        '10,"Heat, The (Chaleur, La) (1995)",Action|Crime',
        "11,Unknown,(no genres listed)",
        '12,"Series ""X"" (2006-2007)",Drama',
    )
    spec, _ = read("movielens", tmp_path / "in", tmp_path / "work", split="position", history=3)
    assert spec.events[0].files == ("ratings.csv",)
    assert spec.split.by == "position" and spec.users is None
    assert spec.items is not None
    table = pl.read_parquet(spec.items.files[0])
    assert table["year"].to_list() == ["1995", None, "2006"]
    assert table["genres"].to_list() == ["Action|Crime", None, "Drama"]
    data = prepared("movielens", tmp_path / "in", split="position", history=3)
    assert data.manifest["counts"]["events"] == 10
    assert sum(dropped(data).values()) == 1, "a rating that is missing is no label"
    frame = events(data)
    assert dict(frame.select("item", "label_like").rows()) == {
        10 + n: int(n >= 7) for n in range(10)
    }


def test_movielens_with_a_broken_table(tmp_path: Path) -> None:
    write(tmp_path / "in" / "ratings.csv", "userId,movieId,rating,timestamp", "1,10,4.0,5")
    write(tmp_path / "in" / "movies.csv", "movieId,title,genres", "10,Heat, The (1995),Action")
    with pytest.raises(DataError, match=r"movies.csv cannot be read as CSV"):
        read("movielens", tmp_path / "in", tmp_path / "work")
    write(tmp_path / "in" / "ratings.csv", "user,movie,rating,timestamp", "1,10,4.0,5")
    with pytest.raises(DataError, match=r"ratings.csv has no column userId; found user, movie"):
        read("movielens", tmp_path / "in", tmp_path / "work")


def test_movielens_slice(prepared: Callable[..., Dataset]) -> None:
    data = prepared("movielens", slice_of("ml_latest_small"))
    assert data.manifest["counts"]["events"] == 100_836
    assert (len(data.user_ids), len(data.item_ids)) == (610, 9_724)
    ratings = pl.read_csv(DATA / "ml_latest_small" / "ratings.csv")
    like = (ratings["rating"] >= 4).mean()
    assert np.mean(data.events["label_like"]) == pytest.approx(like, abs=1e-9)
    first = int(np.min(data.events["time"]))
    assert first == 1000 * int(ratings["timestamp"].min())  # type: ignore[arg-type]
    counts = [int(c) for c in np.bincount(data.requests["split"], minlength=3)]
    assert min(counts) > 0


# MIND


def test_mind_converts_the_official_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mind(tmp_path / "MINDsmall")
    spec, _ = read("mind", tmp_path / "MINDsmall", tmp_path / "work", quiet=False)
    assert "1 impressions without labels skipped" in capsys.readouterr().err
    assert spec.name == "mindsmall"
    assert spec.split.test_from == "2019-11-15T00:00:00"
    assert spec.history.keep == "click" and spec.history.length == 50
    rows = pl.read_parquet(spec.events[0].files[0])
    part = 10_000_000_000
    assert rows["impression_id"].to_list() == [1, 1, 2, 2, 3, part + 1, part + 1]
    assert rows["news_id"].to_list() == ["N3", "N2", "N1", "N3", "N1", "N3", "N4"]
    assert rows["click"].to_list() == [0, 1, 1, 0, 0, 1, 0]
    assert rows["time"][0] == 1_573_548_922_000
    lists = pl.read_parquet(spec.events[1].files[0])
    assert lists["history"].to_list() == [["N1", "N2"], ["N1", "N2"], ["N1", "N2", "N3"]]
    assert spec.items is not None
    news = pl.read_parquet(spec.items.files[0])
    assert news["news_id"].to_list() == ["N1", "N2", "N3", "N4"]
    assert news["words"].to_list()[0] == ["the", "big", "game"]
    assert news["entities"].to_list()[:2] == [["Q1"], ["Q1", "Q2"]]


def test_mind_prepared(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    mind(tmp_path / "MINDsmall")
    data = prepared("mind", tmp_path / "MINDsmall")
    found = requests(data)
    assert [(r["user"], r["split"], r["history"]) for r in found] == [
        ("U1", "train", ["N1", "N2"]),
        ("U2", "train", []),
        ("U1", "validation", ["N1", "N2", "N2"]),
        ("U1", "test", ["N1", "N2", "N2", "N3"]),
    ]
    assert sorted(found[0]["items"]) == ["N2", "N3"]
    by_item = dict(zip(found[0]["items"], labels(data, "click", found[0]["rows"]), strict=True))
    assert by_item == {"N2": 1.0, "N3": 0.0}
    assert content(data, "item", item_row(data, "N1"))["category"] == {"sports"}


def test_mind_part_alone_and_test_part(tmp_path: Path) -> None:
    mind(tmp_path / "in")
    spec, _ = read("mind", tmp_path / "in" / "MINDsmall_train", tmp_path / "work")
    assert spec.split == Split() and spec.name == "mindsmall_train"
    write(tmp_path / "test" / "behaviors.tsv", "1\tU1\t11/20/2019 8:55:22 AM\tN1\tN3 N2")
    write(tmp_path / "test" / "news.tsv", *NEWS)
    with pytest.raises(DataError, match="no impression has labels"):
        read("mind", tmp_path / "test", tmp_path / "work")
    write(tmp_path / "in" / "MINDlarge_train" / "behaviors.tsv")
    write(tmp_path / "in" / "MINDlarge_train" / "news.tsv")
    with pytest.raises(DataError, match=r"several train parts: MINDlarge_train, MINDsmall_dev"):
        read("mind", tmp_path / "in", tmp_path / "work")


def test_mind_bad_marks_become_bad_rows(tmp_path: Path) -> None:
    write(
        tmp_path / "in" / "behaviors.tsv",
        "1\tU1\t11/12/2019 8:55:22 AM\tN1\tN3-0 N2-7 N1",
        "2\tU1\tsome day\tN1\tN3-1",
        "3\tU1\t11/12/2019 8:55:23 AM\tN1\tN3-1\tmore",
    )
    write(tmp_path / "in" / "news.tsv", *NEWS)
    spec, _ = read("mind", tmp_path / "in", tmp_path / "work", entities=False, title_words=False)
    rows = pl.read_parquet(spec.events[0].files[0])
    assert rows["news_id"].to_list() == ["N3", "N2-7", "N1", "N3", None]
    assert rows["click"].to_list() == [0, None, None, 1, None]
    assert rows["time"].null_count() == 2


@pytest.mark.parametrize(
    ("name", "make"),
    [("kuairand", kuairand), ("taobao-ad", taobao), ("movielens", ml_1m), ("mind", mind)],
)
def test_a_spec_survives_json(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make(folder)
    spec, _ = read(name, folder, tmp_path / "work")
    assert Spec.model_validate(json.loads(spec.model_dump_json())) == spec
