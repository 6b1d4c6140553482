"""Where a run's variables come from: random, or a checkpoint for each component.

Audio embeddings may come from a tokenizer run too, see `embeddings_of_codes`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ba_jax.checkpoints import arrays, manager
from ba_jax.checkpoints.arrays import CheckpointError, flatten, unflatten
from ba_jax.stages.base import Stage, StageError, Variables
from ba_jax.vocab import COMPONENTS

RANDOM = "random"
_EMBED = "audio_embed"
_EMBED_PATH = "params/audio_embed/embedding_"
_PROJECTION = "params/text_projection/kernel"


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


def embeddings_of_codes(reader: arrays.Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Audio embeddings that a tokenizer run implies.

    Its text projection taught the frozen language model to read sums of codebook rows. The sum of
    the projected rows is the projection of the sum: with the bias shared among the codebooks, the
    language model hears codes from the first step on as it heard the features. The row of the end
    of audio is 0.

    Args:
      reader: of a tokenizer run's weights.
      shapes: `params/audio_embed/embedding_Q` -> anything with `.shape`, (codes + 1, width).

    Raises:
      CheckpointError: a tokenizer of other sizes.
    """
    kernel_ED = reader.read(_PROJECTION).astype(np.float32)
    bias_D = reader.read(_PROJECTION.replace("kernel", "bias")).astype(np.float32)
    made = {}
    for number in range(len(shapes)):
        name = f"{_EMBED_PATH}{number}"
        table_VE = reader.read(f"codebook/vq_bridge/embed_{number}").astype(np.float32)
        rows_VD = table_VE @ kernel_ED + bias_D / len(shapes)
        made[name] = np.concatenate([rows_VD, np.zeros_like(rows_VD[:1])])
        if made[name].shape != tuple(shapes[name].shape):
            raise CheckpointError(
                f"{reader.directory}: gives {name} of shape {made[name].shape}, expected "
                f"{tuple(shapes[name].shape)}"
            )
    return made


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
        folder = manager.weights_folder(path)
        manager.check_weights(folder)
        reader = arrays.Reader(folder)
        stored = reader.arrays
        if _EMBED in components and _PROJECTION in stored and f"{_EMBED_PATH}0" not in stored:
            components.remove(_EMBED)
            logging.info("%s from codebooks and text projection of %s", _EMBED, folder)
            made = embeddings_of_codes(
                reader, {name: flat[name] for name in flat if name.startswith(_EMBED_PATH)}
            )
            loaded |= {name: jax.device_put(made[name], flat_shardings[name]) for name in made}
            if not components:
                continue
        wanted = {
            name: leaf
            for name, leaf in flat.items()
            if name.split("/")[1] in components
            # Adapters begin at random unless the checkpoint has them.
            and ("/lora_" not in name or name in stored)
        }
        logging.info("%s from %s", ", ".join(components), folder)
        loaded |= flatten(
            arrays.load_variables(
                folder,
                shapes=unflatten(wanted),
                sharding=unflatten({name: flat_shardings[name] for name in wanted}),
                dtype=jax.numpy.float32,
                checked=True,
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
