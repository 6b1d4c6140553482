"""Where a run's variables come from: random, or a checkpoint for each component."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax

from ba_jax import checkpoint, run_state
from ba_jax.checkpoint import flatten, unflatten
from ba_jax.models.baichuan_audio import COMPONENTS
from ba_jax.steps.base import Stage, StageError, Variables

RANDOM = "random"


def sources(
    stage: Stage, init: Mapping[str, str], rates: Mapping[str, float | None]
) -> dict[str, str]:
    """The checkpoint of each of the stage's components that has one.

    Args:
      stage: which.
      init: component -> a path, "random", or "": random if some of it trains, else an error.
      rates: of all parameters, None for those that are frozen.

    Raises:
      StageError: a name that is no component, or a component that is frozen and has no checkpoint.
    """
    unknown = sorted(set(init) - set(COMPONENTS))
    if unknown:
        raise StageError(f"init: {unknown}, expected components, some of {COMPONENTS}")
    wrong = sorted(name for name, path in init.items() if not isinstance(path, str))
    if wrong:
        raise StageError(f"init.{wrong[0]} = {init[wrong[0]]!r}: expected a path, 'random' or ''")
    found = {}
    for name in stage.components:
        path = init.get(name, "")
        trains = any(rate for p, rate in rates.items() if p.split("/")[0] == name)
        if path and path != RANDOM:
            found[name] = path
        elif not path and not trains:
            raise StageError(
                f"stage {stage.name}: {name} is frozen and init.{name} is empty: expected a "
                f"checkpoint, --config.init.{name}=WORKDIR of the stage that trains it"
            )
    unused = sorted(name for name, path in init.items() if path and name not in stage.components)
    if unused:
        logging.info("stage %s does not use init.%s", stage.name, ", init.".join(unused))
    return found


def start_variables(
    stage: Stage,
    shapes: Variables,
    found: Mapping[str, str],
    shardings: Variables,
    key: jax.Array,
) -> Variables:
    """Variables of a new run, on the devices.

    Args:
      stage: which.
      shapes: of all its variables.
      found: component -> checkpoint, see `sources`; all others are drawn at random.
      shardings: a tree like `shapes`.
      key: of what is random.

    Raises:
      CheckpointError: no checkpoint, or one of other sizes: every array is named.
    """
    flat, flat_shardings = flatten(shapes), flatten(shardings)
    loaded: dict[str, Any] = {}
    for path in dict.fromkeys(found.values()):
        components = [name for name, of in found.items() if of == path]
        folder = run_state.weights_folder(path)
        stored = checkpoint.Reader(folder).arrays
        wanted = {
            name: leaf
            for name, leaf in flat.items()
            if name.split("/")[1] in components
            # Adapters begin at random unless the checkpoint has them.
            and ("/lora_" not in name or name in stored)
        }
        logging.info("%s from %s", ", ".join(components), folder)
        loaded |= flatten(
            checkpoint.load_variables(
                folder,
                shapes=unflatten(wanted),
                sharding=unflatten({name: flat_shardings[name] for name in wanted}),
                dtype=jax.numpy.float32,
            )
        )
    rest = [name for name in flat if name not in loaded]
    if rest:

        def draw(key):
            values = flatten(stage.init(key))
            return {name: values[name] for name in rest}

        drawn = jax.jit(draw, out_shardings={name: flat_shardings[name] for name in rest})
        loaded |= drawn(key)
    return unflatten({name: loaded[name] for name in flat})
