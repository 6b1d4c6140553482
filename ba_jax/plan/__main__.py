"""`python -m ba_jax.plan`."""

from absl import app

from ba_jax.plan.main import define_flags, main

if __name__ == "__main__":
    define_flags()
    app.run(main)
