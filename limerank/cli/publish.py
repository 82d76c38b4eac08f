"""``limerank publish``: a local folder to a storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet

INTERRUPTED = "what was published before stays; run the same command again to continue"


def publish(
    folder: Annotated[Path, typer.Argument(help="A dataset, a run or an index.")],
    uri: Annotated[str, typer.Argument(help="s3://BUCKET/PATH, or of gs, hdfs or file.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Publish a folder to a storage: a dataset, a run or an index.

    A reader finds the new version when it is complete, and until then the old one. Files that both
    versions have are sent once. Every command takes the URI in place of a folder, and compares what
    it fetches with the checksums that are published.

    Examples:

        limerank publish runs/mine s3://shop/runs/mine

        limerank publish index/mine s3://shop/index/mine --overwrite
    """
    from limerank.storage.publishing import publish as run
    from limerank.storage.uris import shown

    run(folder, uri, overwrite=overwrite, quiet=quiet)
    print(f"{folder} is published: {shown(uri)}")
