"""Shards made by an Apache Beam pipeline: on a cluster, or here with DirectRunner.

    python -m ba_jax.corpora ... --runner=beam --beam_options="--runner=FlinkRunner ..."

It exists beside `pool` for corpora that outgrow one machine; on a single machine the pool is faster
and needs no package. The machine that starts the pipeline lists the source and finishes the
dataset; workers make shards with the same code as local processes, and so the same bytes. All of
them see the corpus and the dataset's folder under the same paths: a network file system, or a
bucket mounted as one. Packages: the extra `beam`.

DirectRunner stands for its Python engine, FnApiRunner: Beam's own DirectRunner would first try to
download a runner written in Go.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path

from ba_jax.corpora.shards import Job, PrepareError, ShardPlan, make_shard
from ba_jax.corpora.sources.base import Source, SourceError

_LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """Makes shards in a pipeline, as `run_jobs` of `runner.prepare`."""

    options: str = "--runner=DirectRunner"

    def __call__(self, plan: ShardPlan, jobs: list[Job], directory: Path) -> None:
        """Run the pipeline to its end."""
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        except ImportError as error:
            raise SourceError(f"--runner=beam: {error}; install ba_jax[beam]") from None
        words = shlex.split(self.options)
        options = PipelineOptions(words)
        if words and not options.get_all_options(drop_default=True):
            raise SourceError(f"--beam_options: none of {words} is an option that Beam knows")
        standard = options.view_as(StandardOptions)
        if (standard.runner or "DirectRunner") == "DirectRunner":
            standard.runner = _LOCAL_RUNNER
        work = functools.partial(
            _make_shard, source=plan.source, directory=str(directory), fingerprint=plan.fingerprint
        )
        try:
            with beam.Pipeline(options=options) as pipeline:
                (
                    pipeline
                    | "list shards" >> beam.Create(jobs)
                    # Otherwise the runner may fuse all shards into a single piece of work.
                    | "spread" >> beam.Reshuffle()
                    | "make shards" >> beam.Map(work)
                )
        except Exception as error:  # the classes depend on the runner
            raise PrepareError(f"the pipeline failed: {error}; complete shards are kept") from error


def _make_shard(job: Job, source: Source, directory: str, fingerprint: str) -> int:
    """Make a shard from its start; returns its number of records."""
    try:
        return make_shard(job, source, Path(directory), fingerprint)["records"]
    except PrepareError as error:
        raise PrepareError(f"{job.describe()}: {error}") from error
