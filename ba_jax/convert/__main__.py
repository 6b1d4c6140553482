"""Entry point of `python -m ba_jax.convert`."""

import sys

from ba_jax.convert.main import main

if __name__ == "__main__":
    sys.exit(main())
