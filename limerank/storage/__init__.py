"""Storages behind URIs: ``s3://``, ``gs://``, ``hdfs://`` and ``file://``, by ``pyarrow.fs``.

``uris`` reads a URI, ``systems`` opens its storage and explains its errors, and ``logs`` finds and
opens the files of a log. A dataset, a run or an index is published under a URI by ``publishing``,
in the layout that ``manifest`` describes, and fetched by ``fetching`` into the ``cache``, from
where it is mapped. ``arguments`` does both for the arguments of a command or of a function: nothing
that prepares, trains or ranks knows of storages.
"""
