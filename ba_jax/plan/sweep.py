"""Try meshes, rows and remat policies, and rank those that fit by expected time per token.

Each candidate is compiled and takes as long as a plan, so candidates that cannot fit are skipped: a
policy that keeps more, or more rows, after less did not fit on the same mesh. Results are written
one by one; an interrupted sweep resumes from them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ba_jax.plan import planner
from ba_jax.plan.planner import REMAT_ORDER
from ba_jax.plan.report import as_dict, format_bytes, format_seconds, format_table
from ba_jax.plan.topology import PlanError, Topology
from ba_jax.run_config import RunConfig
from ba_jax.sharding import ShardingError

FITS, TOO_LARGE, IMPOSSIBLE, SKIPPED = "fits", "too large", "impossible", "skipped"


@dataclasses.dataclass(frozen=True)
class SweepCandidate:
    """Settings to try: mesh axes, rows of each share of the batch, remat policy."""

    replica: int
    fsdp: int
    tensor: int
    sequence: int
    rows: int
    remat: str

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items())

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh's axes."""
        return {name: getattr(self, name) for name in ("replica", "fsdp", "tensor", "sequence")}

    def keeps_no_less(self, other: SweepCandidate) -> bool:
        """Whether it needs at least the memory of another on the same mesh."""
        return (
            self.mesh == other.mesh
            and self.rows >= other.rows
            and REMAT_ORDER.index(self.remat) >= REMAT_ORDER.index(other.remat)
        )


def make_candidates(
    devices: int,
    slices: int = 1,
    *,
    divides_positions: bool = True,
    inner: Iterable[int] = (1, 2, 4, 8),
    rows: Iterable[int] = (1, 2, 4, 8),
    remats: Iterable[str] = REMAT_ORDER,
) -> list[SweepCandidate]:
    """List candidates, small tensor and sequence first, then remat that keeps little.

    Each slice has a copy of the model; fsdp takes the devices that tensor and sequence do not use.
    """
    inner, slice_devices = tuple(inner), devices // slices
    result = [
        SweepCandidate(slices, slice_devices // (tensor * sequence), tensor, sequence, count, remat)
        for tensor in inner
        for sequence in (inner if divides_positions else (1,))
        for remat in remats
        for count in rows
        if slice_devices % (tensor * sequence) == 0
    ]
    return sorted(
        result,
        key=lambda c: (c.tensor * c.sequence, c.tensor, REMAT_ORDER.index(c.remat), c.rows),
    )


def attempt(config: RunConfig, topology: Topology, candidate: SweepCandidate) -> dict[str, Any]:
    """Plan a candidate; return its status, and its plan or the reason for none."""
    mesh = dataclasses.replace(config.mesh, **candidate.mesh)
    train = dataclasses.replace(config.train, remat=candidate.remat, accumulation_steps=1)
    config = dataclasses.replace(config, mesh=mesh, train=train)
    try:
        plan = planner.plan_training(config, topology, rows=candidate.rows)
    except planner.DoesNotFit as error:
        over = error.plan.peak_bytes - error.plan.hbm_bytes
        return {"status": TOO_LARGE, "reason": f"{format_bytes(over)} over"}
    except (ShardingError, PlanError) as error:
        return {"status": IMPOSSIBLE, "reason": str(error)}
    status = FITS if plan.fits else TOO_LARGE
    return {"status": status, "reason": "", "plan": as_dict(plan)}


def run_sweep(
    candidates: Iterable[SweepCandidate],
    attempt: Callable[[SweepCandidate], dict[str, Any]],
    *,
    limit: int,
    path: Path | None = None,
    label: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the result of each candidate, in order, reusing those in the file.

    Args:
      candidates: settings to try, in order.
      attempt: returns a result, see `attempt`.
      limit: most candidates to compile in this run.
      path: JSONL file of results; lines with another label are ignored.
      label: name of the config and the topology.

    Raises:
      PlanError: a file with other lines than results.
    """
    done = {line["candidate"]: line for line in _read_results(path) if line["label"] == label}
    too_large: list[SweepCandidate] = []
    for candidate in candidates:
        result = done.get(str(candidate))
        larger = next((c for c in too_large if candidate.keeps_no_less(c)), None)
        head = {"label": label, "candidate": str(candidate)}
        if result is None and larger is not None:
            reason = f"{larger} is too large already"
            result = {**head, "status": SKIPPED, "reason": reason}
        elif result is None:
            if limit < 1:
                continue
            limit -= 1
            result = {**head, **attempt(candidate)}
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
        if result["status"] == TOO_LARGE:
            too_large.append(candidate)
        yield result


def _read_results(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            result = json.loads(line)
            results.append({"label": result["label"], "candidate": result["candidate"], **result})
        except (ValueError, KeyError, TypeError):
            raise PlanError(f"{path}, line {number}: expected a sweep's result") from None
    return results


def token_seconds(result: Mapping[str, Any]) -> float:
    """Time of a step per token, or per second of audio for clips, of a fitting result.

    It is the expected time, or the serial one where no step was measured.
    """
    plan = result["plan"]
    amount = plan["amounts"].get("tokens") or plan["amounts"]["audio_seconds"]
    return plan["time"]["seconds"] / amount


def rank(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort the results that fit by time per token, then by memory."""
    fitting = [result for result in results if result["status"] == FITS]
    return sorted(fitting, key=lambda r: (token_seconds(r), r["plan"]["peak_bytes"]))


def format_ranking(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Format the ranking as a table, and the candidates that are not in it."""
    results = list(results)
    rows = [("", "a token", "step", "time", "MFU", "bound by", "peak")]
    for result in rank(results):
        plan = result["plan"]
        time = plan["time"]
        rows.append(
            (
                result["candidate"],
                format_seconds(token_seconds(result)),
                format_seconds(time["seconds"]),
                time["best"],
                f"{time['mfu']:.1%}",
                time["by"],
                format_bytes(plan["peak_bytes"]),
            )
        )
    lines = format_table(rows) if len(rows) > 1 else ["  no candidate that was tried fits"]
    others = [r for r in results if r["status"] not in (FITS, SKIPPED)]
    lines += [f"  {r['candidate']}: {r['status']} ({r['reason']})" for r in others]
    skipped = sum(r["status"] == SKIPPED for r in results)
    return lines + ([f"  {skipped} more would be larger still"] if skipped else [])
