"""Training stages, a file each; the loop, which they share, is `ba_jax.train`."""
