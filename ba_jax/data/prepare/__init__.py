"""Making datasets: `python -m ba_jax.data.prepare`. Importing it loads no JAX."""
