"""ba_jax: Baichuan-Audio (arXiv 2502.17239) in JAX/Flax. Importing it has no side effects."""

__version__ = "0.1.0"
