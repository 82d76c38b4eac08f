"""Writes tests/formats/cdc71e2: a dataset of format 2 and what its batches hold. See README.md.

Runs against commit cdc71e2: ``python tests/formats/write_cdc71e2.py OUT`` from its root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from limerank import Dataset, load_spec, prepare
from tests.worlds import write_pages


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        spec = write_pages(Path(work) / "log", users=12, pages=4, size=4)
        prepare(load_spec(spec), Path(work) / "pages", base=spec.parent)
        dataset = Dataset(Path(work) / "pages")
        batch = dataset.batch(dataset.requests_of("test"))
        assert batch.shown is not None
        expected = {
            "impression_features": dataset.encoding["impression_features"],
            "tokens": batch.shown.tokens.tolist(),
            "numbers": batch.shown.numbers.tolist(),
            "history": batch.users.tokens.tolist(),
            "context": batch.users.context.tolist(),
        }
        dataset.path.joinpath("spec.toml").unlink()  # names files that nobody else has
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            archive.add(Path(work) / "pages", "pages")
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
