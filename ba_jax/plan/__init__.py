"""What a run would take on a pod or a GPU, before there is one; `python -m ba_jax.plan`."""
