"""Attention of the language model's packed rows in training: causal, within segments, no cache.

Kinds, `train.attention` in a run's config:

  xla           `layers.attention` on a mask: runs everywhere, keeps scores of all pairs
  splash        the Pallas kernel for TPUs, blocks of positions; on a CPU it is interpreted, for
                tests
  splash_fused  the same with one backward kernel: five products instead of seven, for partial
                gradients of the queries in HBM, one for each block of keys
  cudnn         cuDNN's flash attention on NVIDIA GPUs, in bfloat16, the segments as a mask

"splash:256" and "splash_fused:256" have blocks of at most 256 positions instead of 512.

On a mesh, rows, heads and queries' positions are divided; every device has the keys and values of
whole rows. The result at padded positions is finite and differs between the kinds.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ba_jax import sharding
from ba_jax.config import expected

SPLASH = ("splash", "splash_fused")
KINDS = ("xla", *SPLASH, "cudnn")
_INTERPRETED = "_interpreted"
INTERPRETED = f"splash{_INTERPRETED}"
"""The kind that replaces splash on a CPU."""
RESIDUALS = "attention"
"""Name of the residuals of splash attention, for remat policies."""
# Positions of a block at most. Larger ones compute more of what the causal mask hides (with 1,024 a
# text step takes 631 ms instead of 626 on v5p, by the plan), smaller ones make smaller products.
_BLOCK = 512
_LEAST = 128


class AttentionError(ValueError):
    """A kind of attention that this platform does not run, or sizes that it does not accept."""


def is_splash(kind: str) -> bool:
    """Whether a kind is splash attention, of any form."""
    return kind.startswith(SPLASH[0])


def check_kind(kind: str) -> None:
    """Check the name of a kind and, with splash attention, its block.

    Raises:
      AttentionError: an unknown kind, or a block that is no multiple of 128.
    """
    name, colon, block = kind.partition(":")
    if name not in KINDS or (colon and name not in SPLASH):
        raise AttentionError(f"attention {expected(kind, KINDS)}, splash also as 'splash:BLOCK'")
    if colon and not (block.isdecimal() and int(block) >= _LEAST and int(block) % _LEAST == 0):
        raise AttentionError(f"attention {kind!r}: expected a block of a multiple of {_LEAST}")


def on_platform(kind: str, platform: str, dtype: jnp.dtype) -> str:
    """The kind to use on a platform ("cpu", "gpu", "tpu") for a requested kind.

    Raises:
      AttentionError: as `check_kind`, or the platform or the dtype is not supported.
    """
    check_kind(kind)
    if is_splash(kind) and platform not in ("tpu", "cpu"):
        raise AttentionError(f"attention {kind!r} on {platform}: expected TPUs, or 'xla'")
    if kind == "cudnn" and platform not in ("gpu", "cuda"):
        raise AttentionError(f"attention 'cudnn' on {platform}: expected NVIDIA GPUs, or 'xla'")
    if kind == "cudnn" and dtype != jnp.bfloat16:
        raise AttentionError(f"attention 'cudnn' in {jnp.dtype(dtype)}: expected dtype bfloat16")
    if is_splash(kind) and platform == "cpu":
        name, colon, block = kind.partition(":")
        return f"{name}{_INTERPRETED}{colon}{block}"
    return kind


def packed_attention(
    kind: str, q_BLHD: jax.Array, k_BLKD: jax.Array, v_BLKD: jax.Array, segments_BL: jax.Array
) -> jax.Array:
    """Causal attention within segments, with scale 1/sqrt(D); K divides H.

    Raises:
      AttentionError: sizes that the kernel does not accept.
    """
    mesh = sharding.current_mesh()
    heads, kv_heads, tensor = q_BLHD.shape[2], k_BLKD.shape[2], 1
    parts = 1 if mesh is None else mesh.shape["sequence"]
    if mesh is not None and heads % mesh.shape["tensor"] == 0:
        tensor = mesh.shape["tensor"]
    length = q_BLHD.shape[1]
    rows = 1 if mesh is None else sharding.num_shards("batch")
    if q_BLHD.shape[0] % rows:
        raise AttentionError(
            f"{q_BLHD.shape[0]} rows (of a microbatch) on {rows} devices: expected a multiple"
        )
    if length % parts:
        raise AttentionError(f"{length} positions on mesh.sequence = {parts}: expected a multiple")
    if kind == "cudnn":
        kernel, kernel_spec, run = (), (), _cudnn
    else:
        kernel = _splash_kernel(kind, length, q_BLHD.shape[3], heads, tensor, parts)
        run = _splash
    if mesh is None:
        return run(kernel, q_BLHD, k_BLKD, v_BLKD, segments_BL, segments_BL)
    split = "tensor" if tensor > 1 else None
    if kind != "cudnn":
        kernel_spec = kernel.manual_sharding_spec(
            jax.sharding.NamedSharding(mesh, PartitionSpec(split, "sequence"))
        )
    # Fewer key heads than devices: every device has all of them and selects the one it needs.
    shared = tensor > 1 and kv_heads % tensor != 0
    if shared and tensor % kv_heads:
        raise AttentionError(f"{kv_heads} key heads on mesh.tensor = {tensor}: expected a divisor")
    batch = sharding.LOGICAL_AXES["batch"]
    keys = PartitionSpec(batch, None, None if shared else split)

    def run_on_device(kernel, q, k, v, query_segments, segments):
        if shared:
            head = jax.lax.axis_index("tensor") * kv_heads // tensor
            k, v = (jax.lax.dynamic_slice_in_dim(a, head, 1, axis=2) for a in (k, v))
        return run(kernel, q, k, v, query_segments, segments)

    return jax.shard_map(
        run_on_device,
        mesh=mesh,
        in_specs=(
            kernel_spec,
            PartitionSpec(batch, "sequence", split),
            keys,
            keys,
            PartitionSpec(batch, "sequence"),
            PartitionSpec(batch),
        ),
        out_specs=PartitionSpec(batch, "sequence", split),
        check_vma=False,
    )(kernel, q_BLHD, k_BLKD, v_BLKD, segments_BL, segments_BL)


def _block_size(kind: str, length: int, most: int) -> int:
    """The largest size of a kernel's blocks that divides `length`, `most` at most."""
    for block in range(most, 0, -_LEAST):
        if length % block == 0:
            return block
    raise AttentionError(
        f"attention {kind!r} on {length} positions a device: expected a multiple of {_LEAST}"
    )


def _splash_kernel(kind: str, length: int, head_dim: int, heads: int, tensor: int, parts: int):
    """The kernel of a causal mask, to be divided over devices by heads and positions."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    kind, _, block = kind.partition(":")
    kind, interpret = kind.removesuffix(_INTERPRETED), kind.endswith(_INTERPRETED)
    most = int(block or _BLOCK)
    fused = kind == "splash_fused"
    if head_dim % 128:
        raise AttentionError(
            f"attention {kind!r} with head_dim {head_dim}: expected a multiple of 128"
        )
    queries, keys = (_block_size(kind, size, most) for size in (length // parts, length))
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    return splash.make_splash_mha(
        mask,
        block_sizes=splash.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_kv_compute=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_kv_dkv_compute=keys,
            block_q_dq=None if fused else queries,
            block_kv_dq=None if fused else keys,
            use_fused_bwd_kernel=fused,
        ),
        head_shards=tensor,
        q_seq_shards=parts,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )


def _splash(kernel, q, k, v, query_segments, segments) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    q = q * (q.shape[-1] ** -0.5)
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(query_segments, segments))
    return jnp.swapaxes(out, 1, 2)


def _cudnn(_, q, k, v, query_segments, segments) -> jax.Array:
    first = 0
    if q.shape[1] < k.shape[1]:
        first = jax.lax.axis_index("sequence") * q.shape[1]
    positions = first + jnp.arange(q.shape[1])
    causal = jnp.arange(k.shape[1])[None] <= positions[:, None]
    mask = (query_segments[:, :, None] == segments[:, None]) & causal[None]
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return attend(q, k, v, mask=mask[:, None])
