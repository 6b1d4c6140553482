"""Training stages: what differs between them is here, the loop is `ba_jax.train`."""
