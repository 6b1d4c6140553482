"""Entry point of `python -m ba_jax.evals.paper`."""

import sys

from ba_jax.evals.paper.main import main

if __name__ == "__main__":
    sys.exit(main())
