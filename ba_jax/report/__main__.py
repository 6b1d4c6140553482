"""Entry point of `python -m ba_jax.report`."""

import sys

from ba_jax.report.main import main

if __name__ == "__main__":
    sys.exit(main())
