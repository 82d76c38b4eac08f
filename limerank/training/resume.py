"""Run folders that trainings write to: which may be resumed, and who writes to them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from limerank.errors import FormatError, LimerankError
from limerank.files import read_json, sync_directory
from limerank.locks import held_alone
from limerank.runs.alarms import STATE, is_unfinished
from limerank.runs.formats import FORMAT

LAYOUT = frozenset({"tables", "table_bytes"})


def check_resumable(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse a run folder unless it contains an unfinished training with these settings.

    Args:
        out: the folder.
        wanted: of :func:`limerank.runs.folder.settings`.

    Raises:
        FormatError: it contains something else.
    """
    stored = read_json(out / "config.json", "a run")
    if not is_unfinished(out):
        end(out)
        raise FormatError(f"{out} is a finished run; pass --overwrite or choose another folder")
    if stored.get("format") != FORMAT:
        raise FormatError(
            f"{out} is an unfinished run of another version (format {stored.get('format')!r:.40}, "
            f"not {FORMAT}), which cannot be resumed; pass --overwrite to train from the start"
        )
    started, wanted_start = _start(stored), _start(wanted)
    if started != wanted_start:
        raise FormatError(
            f"{out} is an unfinished run that was started from {started}, not from {wanted_start}; "
            "give the same run (--from) to resume it, or --overwrite to train from the start"
        )
    stored = {**stored, "train": _without_layout(stored.get("train"))}
    wanted = {**wanted, "train": _without_layout(wanted["train"])}
    for part in ("model", "train", "shape", "data", "encoding"):
        if stored.get(part) != wanted[part]:
            differing = part
            if isinstance(stored.get(part), dict):
                fields = {**stored[part], **wanted[part]}
                differing = ", ".join(
                    f"{part}.{name} is {stored[part].get(name)!r}, not {wanted[part].get(name)!r}"
                    for name in fields
                    if stored[part].get(name) != wanted[part].get(name)
                )
                if not differing:  # settings that are not set, which an earlier version lacked
                    continue
            raise FormatError(
                f"{out} is an unfinished run with other settings ({differing}); give the same "
                "settings to resume it, or --overwrite to train from the start"
            )


def _without_layout(train: Any) -> Any:
    """Settings of a training without those that change nothing but which process has which rows."""
    if not isinstance(train, Mapping):
        return train
    return {name: value for name, value in train.items() if name not in LAYOUT}


def _start(settings: Mapping[str, Any]) -> str:
    """What a training was started from, for comparisons and messages."""
    lineage = settings.get("lineage")
    if not lineage:
        return "random weights"
    return f"{lineage[0]['run']} (fingerprint {lineage[0]['fingerprint']})"


def training_lock(out: Path) -> AbstractContextManager[None]:
    """A lock that keeps other processes from training in this folder; none if no training is
    unfinished there."""
    state = out / STATE
    if not state.exists():
        return nullcontext()
    return held_alone(state / "lock", f"another process is training in {out}")


def end(out: Path) -> None:
    """Remove what a training was resumed from, if it has ended and is not doing that itself."""
    if (out / STATE).exists():
        with training_lock(out):
            shutil.rmtree(out / STATE)
            sync_directory(out)


@contextmanager
def removed_if_empty(out: Path) -> Iterator[None]:
    """Remove the run folder of a training that fails before it has saved anything."""
    try:
        yield
    except (LimerankError, RuntimeError, MemoryError, OSError):
        saved = ("model.safetensors", "trainer/state.safetensors", "trainer/latest.json")
        if not any((out / name).exists() for name in saved):
            shutil.rmtree(out, ignore_errors=True)
        raise
