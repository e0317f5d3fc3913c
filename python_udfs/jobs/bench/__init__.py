"""`make bench`: every figure beside a bound or a peer measured in the same run."""

from python_udfs.jobs.bench.command import bench_command

__all__ = ["bench_command"]
