"""What to change where a step does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from ba_jax.plan.report import size
from ba_jax.run_config import RunConfig

# Policies by what they keep, the least first.
REMAT_ORDER = ("full", "attention", "dots_no_batch", "dots", "none")


def training(
    config: RunConfig,
    mesh: Mapping[str, int],
    rows: int,
    kinds: Mapping[str, int],
    limit: int,
    divides_positions: bool,
    on_tpu: bool,
) -> list[str]:
    """Changes that make a training step smaller, the most useful first.

    Args:
      config: of the run.
      mesh: its axes and sizes.
      rows: of each share of the batch.
      kinds: of the arguments, bytes of a device.
      limit: bytes of memory that a device has.
      divides_positions: the stage can divide positions over `sequence`: it is the language
        model's.
      on_tpu: the devices are TPUs.
    """
    state = sum(count for kind, count in kinds.items() if kind != "batch")
    found = []
    if config.train.remat != "full":
        found.append(f"--config.train.remat=full (now {config.train.remat}): keep less")
    if divides_positions and on_tpu and config.train.attention == "xla":
        found.append("--config.train.attention=splash (now xla): no scores of all pairs")
    frozen = kinds.get("frozen parameters", 0)
    if frozen > limit / 20 and config.train.frozen_param_dtype == "float32":
        found.append(
            f"--config.train.frozen_param_dtype=bfloat16 (now float32): {size(frozen // 2)} less"
        )
    share = rows // config.train.accumulation_steps
    if share > 1:
        found.append(
            f"--config.train.accumulation_steps={2 * config.train.accumulation_steps} (now "
            f"{config.train.accumulation_steps}): the same batch in more microbatches"
        )
        found.append(f"--rows={rows // 2} (now {rows}): fewer rows a share of the mesh")
    if state > limit / 2:
        found.append(
            f"more chips, or a larger --config.mesh.fsdp (now {mesh['fsdp']}): parameters and "
            f"optimiser take {size(state)} of a device"
        )
        if mesh["replica"] > 1:
            found.append(f"--config.mesh.replica=1 (now {mesh['replica']}): fewer copies")
        if config.optimizer.ema_decay:
            found.append(f"--config.optimizer.ema_decay=0 (now {config.optimizer.ema_decay:g})")
    if divides_positions:
        number = 2 * mesh["sequence"]
        found.append(f"--config.mesh.sequence={number}: divide each row's positions")
    if mesh["tensor"] < 8:
        found.append(f"--config.mesh.tensor={2 * mesh['tensor']}: divide heads and widths")
    return found


def decoding(mesh: Mapping[str, int], rows: int, context: int) -> list[str]:
    """Changes that make a step of generation smaller."""
    found = [f"--config.mesh.tensor={2 * mesh['tensor']} (now {mesh['tensor']}): divide the model"]
    if rows > 1:
        found.append(f"--rows={rows // 2} (now {rows})")
    return [*found, f"--context={context // 2} (now {context})"]
