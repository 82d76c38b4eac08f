"""``limerank pull``: what was published, into a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limerank.cli.options import Overwrite, Quiet

INTERRUPTED = "the old folder stays; run the same command again to continue"


def pull(
    uri: Annotated[str, typer.Argument(help="URI of a published dataset, run or index.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy what was published from a storage into a local folder.

    All files are compared with their checksums; then the folder appears, or replaces the old one,
    in one step. Only files that this machine does not have are fetched.

    Commands take URIs themselves. Use this one where a folder has to stay: on the disk of a server,
    or in an image.

    Example:

        limerank pull s3://shop/index/mine --out /data/index/mine --overwrite
    """
    from limerank.storage.fetching import pull as run
    from limerank.storage.uris import shown

    run(uri, out, overwrite=overwrite, quiet=quiet)
    print(f"{out}: {shown(uri)}")
