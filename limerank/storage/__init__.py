"""Storages behind URIs: ``s3://``, ``gs://``, ``hdfs://`` and ``file://``."""
