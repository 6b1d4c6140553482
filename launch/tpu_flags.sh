# Sourced by restart.sh: arguments of libtpu, unless LIBTPU_INIT_ARGS is set already (empty: none).
# Without a TPU nobody reads them. After MaxText's recipes; `python -m ba_jax.plan --effort=0` takes
# them from the environment, too: they make 26 of 55.5 GB of a 7 B text step on v5p:4x4x4
# asynchronous, and its serial roofline 581 ms instead of 615.
# shellcheck shell=bash

if [ -z "${LIBTPU_INIT_ARGS+set}" ]; then
  tpu_flags=(
    # A weight is gathered while products run that do not need it: the gather is cut into steps,
    # fused with them.
    --xla_enable_async_all_gather=true
    --xla_tpu_overlap_compute_collective_tc=true
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    # Gradients of a layer are reduced while the layer before it computes its own; of all sizes.
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
  )
  export LIBTPU_INIT_ARGS="${tpu_flags[*]}"
fi
