"""Making datasets: `python -m ba_jax.corpora`. Importing it loads no JAX."""
