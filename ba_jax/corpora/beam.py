"""The shards of a run as an Apache Beam pipeline: on a cluster, or here with DirectRunner.

    python -m ba_jax.corpora ... --runner=beam --beam_options="--runner=FlinkRunner ..."

The machine that starts the pipeline lists the source and finishes the dataset; workers make shards,
each with the same code as a local process, and so the same bytes. All of them see the corpus and
the dataset's folder under the same paths: a network file system, or a bucket mounted as one.
Packages: the extra `beam`.

DirectRunner stands for its Python engine, FnApiRunner: Beam's own DirectRunner would first try to
download a runner written in Go.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path

from ba_jax.corpora.runner import Plan, PrepareError
from ba_jax.corpora.shards import Job, ShardError, make_shard
from ba_jax.corpora.sources.base import Source
from ba_jax.corpora.sources.listing import SourceError

_HERE = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """Makes shards in a pipeline; see `runner.prepare`.

    Attributes:
      options: the pipeline's, as on a command line: "--runner=DataflowRunner --project=...".
    """

    options: str = "--runner=DirectRunner"

    def __call__(self, plan: Plan, jobs: list[Job], directory: Path) -> None:
        """Runs the pipeline to its end.

        Raises:
          SourceError: Beam is not installed, or options that it does not know.
          PrepareError: the pipeline failed.
        """
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        except ImportError as error:
            raise SourceError(f"--runner=beam: {error}; install ba_jax[beam]") from None
        words = shlex.split(self.options)
        options = PipelineOptions(words)
        known = options.get_all_options(drop_default=True)
        if not known and words:
            raise SourceError(f"--beam_options: none of {words} is an option that Beam knows")
        standard = options.view_as(StandardOptions)
        if (standard.runner or "DirectRunner") == "DirectRunner":
            standard.runner = _HERE
        work = functools.partial(
            _make, source=plan.source, directory=str(directory), fingerprint=plan.fingerprint
        )
        try:
            with beam.Pipeline(options=options) as pipeline:
                (
                    pipeline
                    | "list shards" >> beam.Create(jobs)
                    # Else the runner may fuse all shards into one piece of work.
                    | "spread" >> beam.Reshuffle()
                    | "make shards" >> beam.Map(work)
                )
        except Exception as error:  # each runner has its own kinds
            raise PrepareError(
                f"the pipeline failed: {error}; shards that were complete are kept"
            ) from error


def _make(job: Job, source: Source, directory: str, fingerprint: str) -> int:
    """Makes a shard; a runner that retries one makes it again from the start."""
    try:
        return make_shard(job, source, Path(directory), fingerprint)["records"]
    except ShardError as error:
        raise ShardError(f"{job.describe()}: {error}") from error
