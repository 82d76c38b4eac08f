"""The search for settings: its ranges, the same trials again, kills, and what is left on disk."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

import limerank.tuning.training as training_module
from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError
from limerank.locks import held_alone
from limerank.models.config import TrainConfig, configs_of
from limerank.models.registry import OF_THE_PACKAGE
from limerank.models.settings_file import read_settings, write_settings
from limerank.runs.alarms import read_alarms
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from limerank.tuning import study as study_module
from limerank.tuning.result import Trial, TuningResult
from limerank.tuning.space import SPACE, Choice, Integers, Named, Numbers, defaults_of, space_of
from limerank.tuning.study import Study
from limerank.tuning.tuner import tune
from tests.worlds import prepare_log

MODEL = {"model": "popularity", "width": 8, "hidden": 4}
CONFIG = {"epochs": 2, "batch_size": 256, "history": 8, "metric": "click/auc"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("tune"), users=25)


def search(data: Path, out: Path, trials: int = 3, **more) -> TuningResult:
    return tune(data, out, **{"model": MODEL, "config": CONFIG, "trials": trials, **more})


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory) -> TuningResult:
    return search(data, tmp_path_factory.mktemp("searched") / "tuned", trials=4)


def same_trials(one: TuningResult, other: TuningResult) -> bool:
    """Whether the trials are equal but for the time that they took."""

    def parts(result: TuningResult) -> list[tuple]:
        return [(t.number, t.state, t.value, t.settings, t.validation) for t in result.trials]

    return parts(one) == parts(other)


def ends_of(one: object) -> list:
    """The extreme values of a range, or all of a choice."""
    if isinstance(one, Named):
        return [value for _, value in one.values]
    return list(one.values) if isinstance(one, Choice) else [one.low, one.high]


def test_a_fitted_model_is_not_searched(data, tmp_path):
    with pytest.raises(SpecError, match="item-knn is fitted by counting"):
        tune(data, tmp_path / "tuned", model="item-knn")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("name", OF_THE_PACKAGE)
def test_every_range_contains_the_default_and_valid_values_only(data, name):
    model, config = configs_of(name, {})
    dataset = Dataset(data)
    defaults = defaults_of(model, config, dataset)
    space = space_of(model, config, {}, dataset)
    fields = {*type(model).model_fields, *TrainConfig.model_fields}
    assert set(space) == SPACE.keys() & fields
    for setting, one in space.items():
        assert defaults[setting] in one
        for value in ends_of(one):
            configs_of(name, {setting: value})
    if "heads" in space:
        for width in range(space["width"].low, space["width"].high + 1, space["width"].step):
            for heads in space["heads"].values:
                configs_of(name, {"width": width, "heads": heads})


def test_every_searched_setting_belongs_to_a_model_or_to_training():
    fields = {*TrainConfig.model_fields}
    for name in OF_THE_PACKAGE:
        fields |= {*type(configs_of(name, {})[0]).model_fields}
    assert SPACE.keys() <= fields


def test_fixed_settings_are_not_searched_and_limit_the_others(data):
    dataset = Dataset(data)
    model, config = configs_of("lime-mha", {"width": 20})
    space = space_of(model, config, {"width": 20, "epochs": 5}, dataset)
    assert not {"width", "epochs"} & space.keys()
    assert space["heads"] == Choice((1, 2, 4)), "8 heads do not divide a width of 20"
    assert space["batch_size"] == Integers(16, 256, log=True), "around 64, as the log is small"
    assert space["history"] == Integers(5, 20, 5), "quarters of the dataset's 20"
    assert space["learning_rate"] == Numbers(0.00075, 0.012, log=True)


def test_the_first_trial_is_a_training_with_the_defaults(data, searched, tmp_path):
    run = train(data, tmp_path / "run", model=MODEL, config=CONFIG)
    assert searched.defaults.settings == {}
    assert searched.defaults.value == run.best
    assert searched.defaults.validation["auc"] == run.best
    assert load_run(searched.out / "defaults").train == TrainConfig(
        **CONFIG, objective="impressions"
    )


def test_the_best_trial_is_never_worse_and_its_run_is_there(searched):
    values = [trial.value for trial in searched.trials if trial.state == "finished"]
    assert len(searched.trials) == 4 and len(values) > 1
    assert searched.best.value == max(values) >= searched.defaults.value
    assert searched.gain == searched.best.value - searched.defaults.value
    run = load_run(searched.run)
    chosen = searched.config.model_copy(update={"objective": "impressions"})  # by the log's labels
    assert (run.ranker.config, run.train) == (searched.model, chosen)
    assert searched.alarms == read_alarms(searched.run)
    lines = (searched.run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["best_click/auc"] == searched.best.value


def test_fixed_settings_stay_as_given(searched):
    assert (searched.model.width, searched.model.hidden) == (8, 4)
    assert (searched.config.epochs, searched.config.batch_size) == (2, 256)
    fixed = {*MODEL, *CONFIG}
    assert not any(fixed & trial.settings.keys() for trial in searched.trials)
    assert any(trial.settings for trial in searched.trials)


def test_the_disk_holds_two_runs_at_most(searched):
    expected = {"0", str(searched.best.number)}
    assert {path.name for path in (searched.out / "trials").iterdir()} == expected
    assert (searched.out / "best").resolve().name == str(searched.best.number)
    assert (searched.out / "defaults").resolve().name == "0"


def test_the_settings_file_repeats_the_best_trial(searched, call, tmp_path):
    name, settings = read_settings(searched.out / "best.json")
    assert configs_of(name, settings) == (searched.model, searched.config)
    data = load_run(searched.run).data
    config = ("--config", searched.out / "best.json")
    status, output, _ = call("train", data, *config, "--out", tmp_path / "again", "-q")
    assert status == 0
    assert f"click/auc {searched.best.value:.4f}" in output
    status, output, _ = call(
        "train", data, *config, "--out", tmp_path / "other", "-q", "--epochs", 1, "--seed", 3
    )
    other = load_run(tmp_path / "other")
    assert (other.train.epochs, other.train.seed) == (1, 3), "options replace settings of the file"
    assert other.ranker.config == searched.model


def test_one_seed_gives_the_same_trials(data, searched, tmp_path):
    assert same_trials(search(data, tmp_path / "again", trials=4), searched)
    other = search(data, tmp_path / "other", config={**CONFIG, "seed": 1})
    assert other.trials[1].settings != searched.trials[1].settings


def test_a_finished_search_is_not_repeated_but_extended(data, tmp_path, searched, monkeypatch):
    first = search(data, tmp_path / "tuned", trials=2)
    monkeypatch.setattr(training_module, "train", None)
    assert same_trials(search(data, tmp_path / "tuned", trials=2), first)
    monkeypatch.undo()
    assert same_trials(search(data, tmp_path / "tuned", trials=4), searched)


class InterruptError(Exception):
    pass


def in_training(real, kind):
    """The training whose third call is cut off at its first line of this kind."""
    calls = iter(range(1000))

    def run(*arguments, report, **named):
        third = next(calls) == 2

        def listen(line):
            report(line)
            if third and kind in line:
                raise InterruptError

        return real(*arguments, report=listen, **named)

    return run


def third(real, *, after: bool, skip: int = 0):
    """A function that is cut off in its third call (``skip``: calls that do not count)."""
    calls = iter(range(-skip, 1000))

    def run(*arguments, **named):
        call = next(calls)
        if call == 2 and not after:
            raise InterruptError
        result = real(*arguments, **named)
        if call == 2:
            raise InterruptError
        return result

    return run


CUTS = {
    "at a step": ("train", lambda real: in_training(real, "loss")),
    "at a validation": ("train", lambda real: in_training(real, "validation")),
    "after the training": ("train", lambda real: third(real, after=True)),
    "before folders are removed": ("_tidy", lambda real: third(real, after=False, skip=1)),
    "after folders are removed": ("_tidy", lambda real: third(real, after=True, skip=1)),
}


@pytest.mark.parametrize("moment", CUTS)
def test_a_search_cut_off_in_its_third_trial_continues_with_the_same_trials(
    data, searched, tmp_path, monkeypatch, moment
):
    name, cut = CUTS[moment]
    owner = training_module if name == "train" else Study
    monkeypatch.setattr(owner, name, cut(getattr(owner, name)))
    with pytest.raises(InterruptError):
        search(data, tmp_path / "tuned", trials=4)
    monkeypatch.undo()
    found = search(data, tmp_path / "tuned", trials=4)
    assert same_trials(found, searched)
    expected = {"0", str(found.best.number)}
    assert {path.name for path in (tmp_path / "tuned" / "trials").iterdir()} == expected


def test_a_search_cut_off_while_it_draws_continues_with_the_same_trials(
    data, searched, tmp_path, monkeypatch
):
    """Some settings of the trial are stored, the others are drawn when it goes on."""
    suggest, drawn = Numbers.suggest, []

    def cut(self, trial, name):
        found = suggest(self, trial, name)
        if trial.number == 2:
            drawn.append(name)
            if len(drawn) == 2:
                raise InterruptError
        return found

    monkeypatch.setattr(Numbers, "suggest", cut)
    with pytest.raises(InterruptError):
        search(data, tmp_path / "tuned", trials=4)
    monkeypatch.undo()
    assert len(drawn) == 2
    assert same_trials(search(data, tmp_path / "tuned", trials=4), searched)


SCRIPT = """
import sys
import torch
from limerank import tune
torch.set_num_threads(1)
tune(sys.argv[1], sys.argv[2], model=%r, config=%r, trials=4)
"""


def test_a_search_that_is_killed_continues_with_the_same_trials(data, searched, tmp_path):
    out = tmp_path / "tuned"
    command = [sys.executable, "-c", SCRIPT % (MODEL, CONFIG), str(data), str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "trials" / "2").exists():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert same_trials(search(data, out, trials=4), searched)


def test_what_a_killed_search_left_beside_its_folder_is_removed(data, tmp_path):
    search(data, tmp_path / "tuned", trials=1)
    (tmp_path / ".tuned.partial-12ab.lock").touch()
    search(data, tmp_path / "tuned", trials=1)
    assert os.listdir(tmp_path) == ["tuned"]


@pytest.mark.parametrize("torn", [False, True], ids=["full disk", "power loss"])
def test_what_is_left_of_a_line_is_removed(data, searched, tmp_path, torn):
    """A full disk has its begin, a power loss some of its sectors."""
    out = tmp_path / "tuned"
    search(data, out, trials=2)
    complete = (out / "study.jsonl").read_bytes()
    with open(out / "study.jsonl", "ab") as file:
        line = complete.splitlines(keepends=True)[-1]
        file.write(bytes(512) + line[len(line) // 2 :] if torn else line[:40])
    assert same_trials(search(data, out, trials=4), searched)
    assert (out / "study.jsonl").read_bytes().startswith(complete)


def test_a_full_disk_names_the_study(tmp_path, files_of_at_most):
    journal = tmp_path / "study.jsonl"
    backend = study_module._backend_of(journal)
    backend.append_logs([{"a": 1}])
    with (
        pytest.raises(FormatError, match=r"study.jsonl cannot be written: .*; free space there"),
        files_of_at_most(12),
    ):
        backend.append_logs([{"b": "x" * 100}])
    backend.append_logs([{"c": 3}])
    assert list(backend.read_logs(0)) == [{"a": 1}, {"c": 3}]


def test_a_damaged_study_is_refused(data, tmp_path):
    out = tmp_path / "tuned"
    search(data, out, trials=1)
    lines = (out / "study.jsonl").read_bytes().splitlines(keepends=True)
    (out / "study.jsonl").write_bytes(b"".join([lines[0], b"{not json}\n", *lines[1:]]))
    with pytest.raises(FormatError, match=r"study.jsonl is damaged .*--overwrite"):
        search(data, out, trials=2)
    assert len(search(data, out, trials=1, overwrite=True).trials) == 1


def test_a_search_with_other_settings_is_refused(data, searched, tmp_path):
    with pytest.raises(FormatError, match=r"train.epochs is 2, not 3.*--overwrite"):
        search(data, searched.out, config={**CONFIG, "epochs": 3})
    with pytest.raises(FormatError, match=r"train.seed is 0, not 1"):
        search(data, searched.out, config={**CONFIG, "seed": 1})
    with pytest.raises(FormatError, match=r"fixed is .* not .*clip"):
        search(data, searched.out, config={**CONFIG, "clip": 1.0})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"is not a search: it has no tune[.]json"):
        search(data, tmp_path / "mine")
    with pytest.raises(FormatError, match=r"no tune[.]json"):
        search(data, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_search_of_another_version_is_refused(data, tmp_path):
    out = tmp_path / "tuned"
    search(data, out, trials=1)
    manifest = json.loads((out / "tune.json").read_text())
    (out / "tune.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(FormatError, match=r"another version \(format 99, not 1\).*--overwrite"):
        search(data, out)


def test_the_time_limit_spares_the_defaults_and_pauses_others(data, searched, tmp_path):
    out = tmp_path / "tuned"
    first = search(data, out, trials=4, minutes=1e-9)
    assert [trial.state for trial in first.trials] == ["finished"]
    assert same_trials(search(data, out, trials=4, minutes=60), searched)


def test_a_training_that_the_time_limit_interrupts_is_resumed(
    data, searched, tmp_path, monkeypatch
):
    out = tmp_path / "tuned"
    minutes = iter(range(1000))
    start = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: start + 60 * next(minutes))
    monkeypatch.setattr(training_module, "time", clock)  # a minute passes whenever it is read
    found = search(data, out, trials=4, minutes=9)
    monkeypatch.undo()
    states = [trial.state for trial in found.trials]
    assert states[0] == "finished" and states[-1] == "unfinished" and len(states) < 4
    assert same_trials(search(data, out, trials=4), searched)


def test_a_trial_that_falls_behind_is_pruned_and_its_folder_removed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "UNPRUNED_TRIALS", 1)
    monkeypatch.setattr(study_module, "PEERS", 1)
    found = search(data, tmp_path / "tuned", trials=6, config={**CONFIG, "validations": 2})
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        finished = [one.value for one in found.trials[: trial.number] if one.state == "finished"]
        assert trial.value < max(finished)
        assert not (tmp_path / "tuned" / "trials" / str(trial.number)).exists()
    assert found.best.state == "finished"


def test_a_trial_that_diverges_is_reported_and_the_search_goes_on(data, tmp_path, monkeypatch):
    real = training_module.train
    calls = iter(range(9))

    def diverging(*arguments, **named):
        if next(calls) == 1:
            raise DataError("the training diverged by step 3: the loss is nan")
        return real(*arguments, **named)

    monkeypatch.setattr(training_module, "train", diverging)
    found = search(data, tmp_path / "tuned", trials=3)
    assert [trial.state for trial in found.trials] == ["finished", "failed", "finished"]
    assert "diverged by step 3" in found.trials[1].problem
    assert "1 failed" in found.text()


def test_a_training_with_the_defaults_that_fails_is_an_error(data, tmp_path, monkeypatch):
    def diverging(*arguments, **named):
        raise DataError("the training diverged by step 3")

    monkeypatch.setattr(training_module, "train", diverging)
    with pytest.raises(DataError, match="diverged by step 3"):
        search(data, tmp_path / "tuned")


def test_a_trial_of_another_process_is_left_to_it(data, searched, tmp_path, monkeypatch):
    """The second trial is trained elsewhere: the others go on, and overwriting is refused."""
    out = tmp_path / "tuned"
    monkeypatch.setattr(training_module, "train", in_training(training_module.train, "validation"))
    with pytest.raises(InterruptError):
        search(data, out, trials=3)
    monkeypatch.undo()
    with held_alone(out / "trials" / "2.lock", "another process trains it"):
        found = search(data, out, trials=4)
        assert [trial.state for trial in found.trials][2:] == ["unfinished", "finished"]
        assert (out / "trials" / "2").exists()
        with pytest.raises(FormatError, match="another process searches in"):
            search(data, out, overwrite=True)
    assert search(data, out, trials=4).trials[2].settings == searched.trials[2].settings


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lock_file_that_cannot_be_written_is_named(data, searched, tmp_path, monkeypatch):
    """It does not mean that another process trains the trial."""
    write, failed = os.write, []

    def fail(descriptor, text):
        if not failed and os.readlink(f"/proc/self/fd/{descriptor}").endswith("trials/1.lock"):
            failed.append(text)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, text)

    with monkeypatch.context() as patched, pytest.raises(FormatError) as raised:
        patched.setattr(os, "write", fail)
        search(data, tmp_path / "tuned", trials=4)
    assert re.search(r"trials/1.lock cannot be written \(.*\).*check the disk", str(raised.value))
    assert same_trials(search(data, tmp_path / "tuned", trials=4), searched)


def test_two_processes_may_begin_one_search(data, tmp_path, monkeypatch):
    """The folder appears between the look at it and its making."""
    out = tmp_path / "tuned"
    search(data, out, trials=1)
    looks = iter([False])
    real = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda self: next(looks, True) if self == out else real(self)
    )
    assert len(search(data, out, trials=1).trials) == 1


def test_the_default_metric_whose_lower_values_are_better(data, tmp_path):
    found = search(data, tmp_path / "tuned", trials=3, config={**CONFIG, "metric": None})
    values = [trial.value for trial in found.trials if trial.state == "finished"]
    assert found.metric == "click/calibrated_ne"
    assert found.best.value == min(values) <= found.defaults.value
    assert found.gain == found.defaults.value - found.best.value
    assert (tmp_path / "tuned" / "best").resolve().name == str(found.best.number)


def test_wrong_arguments_are_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    out = tmp_path / "tuned"
    for given, message in (
        ({"trials": 0}, "trials is 0, expected an integer, at least 1"),
        ({"minutes": 0}, "minutes is 0, expected a number above 0"),
        ({"config": {"metric": "click/acu"}}, "did you mean 'click/auc'"),
        ({"model": "lime-mah"}, "did you mean 'lime-mha'"),
    ):
        with pytest.raises(SpecError, match=message):
            search(data, out, **given)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r'Optuna.*pip install "limerank\[tune\]"'):
        search(data, out)
    assert not out.exists()


def test_nothing_to_search_is_refused(data, tmp_path):
    dataset = Dataset(data)
    model, config = configs_of("popularity", {})
    fixed = {**defaults_of(model, config, dataset)}
    del fixed["model"]
    given = {name: value for name, value in fixed.items() if name in TrainConfig.model_fields}
    of_model = {name: fixed[name] for name in fixed if name not in given}
    with pytest.raises(SpecError, match=r"every setting of popularity .* is fixed"):
        tune(data, tmp_path / "x", model={"model": "popularity", **of_model}, config=given)


def made(states: str, values: list[float], higher: bool = True) -> TuningResult:
    """A result whose trials have these states (f: finished, p: pruned) and values."""
    names = {"f": "finished", "p": "pruned"}
    model, config = configs_of("lime-mha", {})
    trials = tuple(
        Trial(
            number,
            names[state],
            value,
            {"links": number} if number else {},
            {"auc": value, "calibrated_ne": 0.9},
            1.0,
        )
        for number, (state, value) in enumerate(zip(states, values, strict=True))
    )
    return TuningResult(Path("tuned"), "click/auc", higher, model, config, trials)


def test_the_table_of_a_search():
    found = made("fpff", [0.6, 0.9, 0.625, 0.625])
    assert found.best.number == 2, "the earliest of equal ones; pruned ones do not count"
    assert found.gain == pytest.approx(0.025)
    assert found.curve() == {1: 0.6, 2: 0.6, 3: 0.625, 4: 0.625}
    text = found.text()
    assert "4 trials (3 finished, 1 pruned)" in text
    assert "best after 1: 0.6000, 2: 0.6000, 4: 0.6250 trials" in text
    assert "best settings: --set links=2" in text
    assert "+0.0250" in text and "the defaults" in text
    table = found.to_polars()
    assert table["links"].to_list() == [None, 1, 2, 3]
    assert table["state"].to_list() == ["finished", "pruned", "finished", "finished"]
    assert found.to_dict()["gain"] == found.gain
    worse = made("ff", [0.6, 0.7], higher=False)
    assert worse.best.number == 0 and worse.gain == 0
    assert "no trial is better than the defaults" in worse.text()
    open_ended = made("pf", [math.nan, 0.5])
    assert math.isnan(open_ended.gain) and open_ended.to_dict()["gain"] is None


def test_a_settings_file_is_checked(tmp_path):
    path = tmp_path / "settings.json"
    model, config = configs_of(
        "lrea", {"slots": 8, "anchors": None, "task_weights": {"watch": 0.5}}
    )
    write_settings(path, model, config)
    name, settings = read_settings(path)
    assert configs_of(name, settings) == (model, config)
    for value, message in (
        ({"modle": {}}, "'modle' is not an object .*\"model\" and \"train\"; did you mean 'model'"),
        ({"model": 3}, "'model' is not an object of settings"),
        ({"model": {"width": 3}}, '"model" has no name; write "model": "lime-mha"'),
        ({"model": {"model": "lime-mah"}}, "did you mean 'lime-mha'"),
        ({"model": {"model": "din", "links": 3}}, "din has no such setting"),
        ({"train": {"epochs": 0}}, "epochs: Input should be greater than or equal to 1; got 0"),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(SpecError, match=message):
            read_settings(path)
    path.write_text("[model]")
    with pytest.raises(FormatError, match="is damaged"):
        read_settings(path)
    with pytest.raises(SpecError, match=r"there is no file .*absent"):
        read_settings(tmp_path / "absent.json")


def test_the_command(data, searched, tmp_path, call):
    out = tmp_path / "tuned"
    fixed = {**MODEL, **CONFIG}
    del fixed["model"], fixed["metric"]
    sets = [part for name, value in fixed.items() for part in ("--set", f"{name}={value}")]
    command = (
        "tune",
        data,
        "--model",
        "popularity",
        "--out",
        out,
        *sets,
        "-q",
        "--metric",
        "click/auc",
    )
    status, output, error = call(*command, "--trials", 2)
    assert (status, error) == (0, "")
    assert "2 trials" in output and f"limerank compare {out / 'best'} --with" in output
    status, output, _ = call(*command, "--trials", 4, "--json")
    assert status == 0
    found = json.loads(output)
    assert found["gain"] == searched.gain
    assert found["trials"][3]["settings"] == searched.trials[3].settings
    status, _, error = call(*command, "--set", "seed=3")
    assert status == 2 and "give it as the option --seed alone" in error
    status, _, error = call(
        "train", data, "--config", out / "best.json", "--model", "din", "--out", tmp_path / "x"
    )
    assert status == 2 and "has settings of popularity; leave --model out" in error


def test_the_help_lists_the_ranges(call):
    status, output, _ = call("tune", "--help")
    assert status == 0
    for name in SPACE:
        assert f" {name} " in output


def test_the_logging_of_optuna_is_as_before(data, searched):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    search(data, searched.out, trials=4)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
