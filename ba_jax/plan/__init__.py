"""Plan a run for a pod or a GPU without the devices; `python -m ba_jax.plan`."""
