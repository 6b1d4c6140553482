"""Losses of target positions alone, with their gradients, on any number of devices.

Output layers are large, and few positions are targets. So

- tables are gathered once, before a loop over chunks of targets, and gradients reduced once after
  it: inside the loop no device waits for another;
- targets are dealt to all devices in turn, wherever their rows lie, and the loop ends with them:
  none is lost, and the work follows their number;
- a chunk's gradients are computed together with its loss, and its logits once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ba_jax import sharding
from ba_jax.losses.lm import CrossEntropy

Sums = dict[str, CrossEntropy]
Weights = Mapping[str, jax.Array | float]


class TargetLoss(NamedTuple):
    """Static part of a loss.

    Attributes:
      function: (params, mask_N, hidden_ND, *values_N) to sums by name over the N positions where
        the mask is true; it closes over no traced arrays.
      chunk: positions of a device at a time; 0: all of them.
      z_loss: weight of the squared log-partition relative to the loss it goes with.
      trips: number of chunks that run, for plans; None: as many as hold targets.
    """

    function: Callable[..., Sums]
    chunk: int
    z_loss: float = 0.0
    trips: int | None = None

    def loss(self, sums: Sums, weights: Weights) -> jax.Array:
        """Weighted sum of those that have a weight."""
        loss = jnp.zeros((), jnp.float32)
        for name in sorted(weights.keys() & sums.keys()):
            loss += weights[name] * (sums[name].loss + self.z_loss * sums[name].square)
        return loss


def loss_at_targets(
    job: TargetLoss,
    params: Any,
    hidden_BLD: jax.Array,
    target_BL: jax.Array,
    values: Sequence[jax.Array],
    weights: Weights,
) -> tuple[jax.Array, Sums]:
    """Sum over the target positions.

    The gradient of the loss reaches `params` and `hidden_BLD`; the sums have none. A parameter's
    gradient has its type, so cast large ones to the compute type before.

    Args:
      job: see `TargetLoss`.
      params: a tree of arrays that its function reads.
      hidden_BLD: hidden states.
      target_BL: positions that count.
      values: further arrays (B, L, ...), not differentiated.
      weights: name of a sum -> its weight in the loss; names that the function does not have are
        ignored.

    Returns:
      (loss, sums), over all rows.
    """
    loss = jax.custom_vjp(functools.partial(_value, job))
    loss.defvjp(functools.partial(_forward, job), _backward, symbolic_zeros=True)
    return loss(params, hidden_BLD, (target_BL, tuple(values), dict(weights)))


def _value(
    job: TargetLoss, params: Any, hidden_BLD: jax.Array, rest: tuple
) -> tuple[jax.Array, Sums]:
    return _run(job, jax.tree.map(lambda _: False, params), params, hidden_BLD, rest)[0]


def _forward(job: TargetLoss, params: Any, hidden_BLD: Any, rest: Any) -> tuple:
    def is_primal(leaf: Any) -> bool:
        return hasattr(leaf, "perturbed")

    is_trained = jax.tree.map(lambda p: p.perturbed, params, is_leaf=is_primal)
    params, rest = jax.tree.map(lambda p: p.value, (params, rest), is_leaf=is_primal)
    return _run(job, is_trained, params, hidden_BLD.value, rest, hidden_BLD.perturbed)


def _backward(gradients: tuple, cotangents: tuple) -> tuple:
    factor = cotangents[0]
    if not isinstance(factor, jax.Array):  # a symbolic zero: the loss is not used
        return None, None, None
    params, hidden_BLD = jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradients)
    return params, hidden_BLD, None


def _run(
    job: TargetLoss,
    is_trained: Any,
    params: Any,
    hidden_BLD: jax.Array,
    rest: tuple,
    hidden: bool = False,
) -> tuple:
    """((loss, sums), (gradients of the trained parameters, gradient of the hidden states if
    `hidden`)); None takes the place of those that nobody asked for."""
    trained = jax.tree.map(lambda leaf, chosen: leaf if chosen else None, params, is_trained)
    held = jax.tree.map(lambda leaf, chosen: None if chosen else leaf, params, is_trained)
    mesh = sharding.current_mesh()
    rows, length = rest[0].shape
    if (
        mesh is None
        or rows % sharding.num_shards("batch")
        or length % sharding.num_shards("length")
    ):
        return _run_on_device(job, (), hidden, trained, held, hidden_BLD, *rest)
    axes = sharding.LOGICAL_AXES["frames"]
    whole = PartitionSpec()
    share = PartitionSpec(sharding.LOGICAL_AXES["batch"], sharding.LOGICAL_AXES["length"])
    return jax.shard_map(
        functools.partial(_run_on_device, job, axes, hidden),
        mesh=mesh,
        in_specs=(whole, whole, share, share, share, whole),
        out_specs=(whole, (whole, share)),
        axis_names=set(axes),
        check_vma=False,
    )(trained, held, hidden_BLD, *rest)


def _run_on_device(
    job: TargetLoss,
    axes: tuple[str, ...],
    hidden: bool,
    trained,
    held,
    hidden_BLD,
    target_BL,
    values,
    weights,
) -> tuple:
    """`_run` on a device's share of the positions, in a mesh divided over `axes`."""
    positions = target_BL.size
    parts = jax.lax.axis_size(axes) if axes else 1
    chunk = min(job.chunk or positions, positions)
    room = -(-positions // math.lcm(parts, chunk)) * math.lcm(parts, chunk)
    dealing = _Dealing.of(_pad(target_BL.reshape(-1), room), axes)
    hidden_ND, *values_N = (
        dealing.deal(_pad(x.reshape(positions, *x.shape[2:]), room)) for x in (hidden_BLD, *values)
    )
    trips = job.trips
    if trips is None:
        most = jax.lax.pmax(dealing.count, axes) if axes else dealing.count
        trips = -(-most // chunk)

    def sums_of(asked: tuple, number: jax.Array | int) -> Sums:
        own_D, *own = (
            jax.lax.dynamic_slice_in_dim(x, number * chunk, chunk) for x in (hidden_ND, *values_N)
        )
        params = jax.tree.map(
            lambda a, b: b if a is None else a, asked[0], held, is_leaf=lambda leaf: leaf is None
        )
        mask_N = number * chunk + jnp.arange(chunk) < dealing.count
        return job.function(params, mask_N, own_D if asked[1] is None else asked[1], *own)

    def loss_of(asked: tuple, number: jax.Array) -> tuple[jax.Array, Sums]:
        sums = sums_of(asked, number)
        return job.loss(sums, weights), sums

    def add(number: jax.Array, total: tuple) -> tuple:
        sums, gradients, gradient_ND = total
        own = jax.lax.dynamic_slice_in_dim(hidden_ND, number * chunk, chunk) if hidden else None
        (_, more), (more_gradients, more_ND) = jax.value_and_grad(loss_of, has_aux=True)(
            (trained, own), number
        )
        sums, gradients = jax.tree.map(jnp.add, (sums, gradients), (more, more_gradients))
        if hidden:
            gradient_ND = jax.lax.dynamic_update_slice_in_dim(
                gradient_ND, more_ND, number * chunk, axis=0
            )
        return sums, gradients, gradient_ND

    asked = (trained, hidden_ND[:chunk] if hidden else None)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        (jax.eval_shape(sums_of, asked, 0), trained, hidden_ND if hidden else None),
    )
    sums, gradients, gradient_ND = jax.lax.fori_loop(0, trips, add, zeros)
    if axes:
        sums, gradients = jax.lax.psum((sums, gradients), axes)
    if hidden:
        gradient_ND = dealing.give_back(gradient_ND)[:positions].reshape(hidden_BLD.shape)
    return (job.loss(sums, weights), sums), (gradients, gradient_ND)


class _Dealing(NamedTuple):
    """Places of a device's positions in the pool of targets.

    Attributes:
      axes: mesh axes that divide the positions.
      slots_N: place of each position, such that equal blocks of places go to each device.
      dealt_N: place in the pool of each position that arrives: targets come first.
      count: targets among these.
    """

    axes: tuple[str, ...]
    slots_N: jax.Array
    dealt_N: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, target_N: jax.Array, axes: tuple[str, ...]) -> _Dealing:
        """Deal targets, then all other positions, to the devices in turn, from the own one on."""
        slots_N = _first_places(target_N)
        if axes:
            parts, first = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
            block = len(slots_N) // parts
            slots_N = (slots_N + first) % parts * block + slots_N // parts
            target_N = _exchange(_place(target_N, slots_N), axes)
            dealt_N = _first_places(target_N)
        else:
            dealt_N, slots_N = slots_N, jnp.arange(len(slots_N))
        return cls(axes, slots_N, dealt_N, jnp.sum(target_N, dtype=jnp.int32))

    def deal(self, x_N: jax.Array) -> jax.Array:
        """Values of the device's positions to those of its pool."""
        if self.axes:
            x_N = _exchange(_place(x_N, self.slots_N), self.axes)
        return _place(x_N, self.dealt_N)

    def give_back(self, x_N: jax.Array) -> jax.Array:
        """Values of the pool to those of the device's positions: inverse of `deal`."""
        x_N = x_N[self.dealt_N]
        return _exchange(x_N, self.axes)[self.slots_N] if self.axes else x_N


def _first_places(mask_N: jax.Array) -> jax.Array:
    """Place of each position if those of the mask come first, in order."""
    before_N = jnp.cumsum(mask_N, dtype=jnp.int32) - mask_N
    others_N = jnp.sum(mask_N, dtype=jnp.int32) + jnp.arange(len(mask_N)) - before_N
    return jnp.where(mask_N, before_N, others_N)


def _place(x_N: jax.Array, slots_N: jax.Array) -> jax.Array:
    """Put each value in its place; indices are inverted, which is less to scatter than values."""
    places = jnp.arange(len(slots_N), dtype=slots_N.dtype)
    return x_N[jnp.zeros_like(slots_N).at[slots_N].set(places, unique_indices=True)]


def _exchange(x_N: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Send the i-th of equal blocks to the i-th device; its own inverse."""
    return jax.lax.all_to_all(x_N, axes, 0, 0, tiled=True)


def _pad(x_N: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x_N, [(0, size - len(x_N))] + [(0, 0)] * (x_N.ndim - 1))
