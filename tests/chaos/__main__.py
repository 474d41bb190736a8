"""`make chaos SECONDS=120 SEED=1`."""

import sys

from tests.chaos.run import main

sys.exit(main(sys.argv[1:]))
