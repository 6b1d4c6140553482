"""Tries meshes, rows and remat policies, and ranks what fits by its time a token.

Each try is compiled and takes as long as a plan, so what cannot fit is not tried: a policy that
keeps more, or more rows, where less did not fit on the same mesh. Results are written as they come;
a sweep goes on where one stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ba_jax.plan import plan as planning
from ba_jax.plan.advice import REMAT_ORDER
from ba_jax.plan.report import as_dict, duration, size, table
from ba_jax.plan.topology import PlanError, Topology
from ba_jax.run_config import RunConfig
from ba_jax.sharding import ShardingError

FITS, TOO_LARGE, IMPOSSIBLE, SKIPPED = "fits", "too large", "impossible", "skipped"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run: mesh axes, rows of each share of the batch, remat policy."""

    replica: int
    fsdp: int
    tensor: int
    sequence: int
    rows: int
    remat: str

    def __str__(self) -> str:
        mesh = f"replica={self.replica} fsdp={self.fsdp} tensor={self.tensor}"
        return f"{mesh} sequence={self.sequence} rows={self.rows} remat={self.remat}"

    def keeps_no_less(self, other: Candidate) -> bool:
        """It needs at least the memory of another on the same mesh."""
        return (
            (self.replica, self.fsdp, self.tensor, self.sequence)
            == (other.replica, other.fsdp, other.tensor, other.sequence)
            and self.rows >= other.rows
            and REMAT_ORDER.index(self.remat) >= REMAT_ORDER.index(other.remat)
        )


def candidates(
    devices: int,
    slices: int = 1,
    *,
    divides_positions: bool = True,
    inner: Iterable[int] = (1, 2, 4, 8),
    rows: Iterable[int] = (1, 2, 4, 8),
    remats: Iterable[str] = REMAT_ORDER,
) -> list[Candidate]:
    """What to try, the most likely first: little inside a row, then remat that keeps little.

    A copy of the model a slice, and in it fsdp takes what tensor and sequence leave.
    """
    inner, each = tuple(inner), devices // slices
    found = [
        Candidate(slices, each // (tensor * sequence), tensor, sequence, number, remat)
        for tensor in inner
        for sequence in (inner if divides_positions else (1,))
        for remat in remats
        for number in rows
        if each % (tensor * sequence) == 0
    ]
    return sorted(
        found,
        key=lambda c: (c.tensor * c.sequence, c.tensor, REMAT_ORDER.index(c.remat), c.rows),
    )


def changed(config: RunConfig, candidate: Candidate) -> RunConfig:
    """The config with a candidate's mesh and policy."""
    mesh = dataclasses.replace(
        config.mesh,
        replica=candidate.replica,
        fsdp=candidate.fsdp,
        tensor=candidate.tensor,
        sequence=candidate.sequence,
    )
    train = dataclasses.replace(config.train, remat=candidate.remat, accumulation_steps=1)
    return dataclasses.replace(config, mesh=mesh, train=train)


def attempt(config: RunConfig, topology: Topology, candidate: Candidate) -> dict[str, Any]:
    """A candidate's result: its status, and its plan or why there is none."""
    try:
        found = planning.training(changed(config, candidate), topology, rows=candidate.rows)
    except planning.DoesNotFit as error:
        over = error.plan.peak_bytes - error.plan.hbm_bytes
        return {"status": TOO_LARGE, "reason": f"{size(over)} over"}
    except (ShardingError, PlanError) as error:
        return {"status": IMPOSSIBLE, "reason": str(error)}
    status = FITS if found.fits else TOO_LARGE
    return {"status": status, "reason": "", "plan": as_dict(found)}


def run(
    tries: Iterable[Candidate],
    attempt: Callable[[Candidate], dict[str, Any]],
    *,
    limit: int,
    path: Path | None = None,
    label: str = "",
) -> Iterator[dict[str, Any]]:
    """Results of candidates as they come, those of before first.

    Args:
      tries: what to try, in order.
      attempt: gives a result, see `attempt`.
      limit: how many to compile in this run, at most.
      path: JSONL to keep results in; lines with another label are left alone.
      label: what is planned, and where.

    Raises:
      PlanError: a file that is no sweep's.
    """
    done = {line["candidate"]: line for line in _lines(path) if line["label"] == label}
    too_large: list[Candidate] = []
    for candidate in tries:
        result = done.get(str(candidate))
        if result is None:
            larger = next((c for c in too_large if candidate.keeps_no_less(c)), None)
            if larger is not None:
                result = {"status": SKIPPED, "reason": f"{larger} is too large already"}
            elif limit < 1:
                continue
            else:
                limit -= 1
                result = attempt(candidate)
            result = {"label": label, "candidate": str(candidate), **result}
            if path is not None and result["status"] != SKIPPED:
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
        if result["status"] == TOO_LARGE:
            too_large.append(candidate)
        yield result


def _lines(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            one = json.loads(line)
            found.append({"label": one["label"], "candidate": one["candidate"], **one})
        except (ValueError, KeyError, TypeError):
            raise PlanError(f"{path}, line {number}: expected a sweep's result") from None
    return found


def seconds_a_token(result: Mapping[str, Any]) -> float:
    """Of a result that fits: the bound of a step over what it learns from.

    Clips have no tokens: seconds of audio stand for them.
    """
    plan = result["plan"]
    amount = plan["amounts"].get("tokens") or plan["amounts"]["audio_seconds"]
    return plan["bound"]["seconds"] / amount


def ranked(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that fit, the fastest first; of equals the one that needs less memory."""
    fitting = [result for result in results if result["status"] == FITS]
    return sorted(fitting, key=lambda r: (seconds_a_token(r), r["plan"]["peak_bytes"]))


def lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ranking as a table, then what is not in it."""
    results = list(results)
    rows = [("", "a token", "step", "bound by", "MFU at most", "peak")]
    for result in ranked(results):
        plan = result["plan"]
        bound = plan["bound"]
        rows.append(
            (
                result["candidate"],
                duration(seconds_a_token(result)),
                duration(bound["seconds"]),
                bound["by"],
                f"{bound['mfu']:.1%}",
                size(plan["peak_bytes"]),
            )
        )
    found = table(rows) if len(rows) > 1 else ["  nothing that was tried fits"]
    rest = [r for r in results if r["status"] not in (FITS, SKIPPED)]
    found += [f"  {r['candidate']}: {r['status']} ({r['reason']})" for r in rest]
    skipped = sum(r["status"] == SKIPPED for r in results)
    return found + ([f"  {skipped} more would be larger still"] if skipped else [])
