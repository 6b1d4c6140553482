"""`python -m ba_jax.generate`: a model at work on files, folders and lists of requests."""
