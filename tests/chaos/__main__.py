"""`make chaos SECONDS=120 SEED=1`."""

import sys

from tests.chaos.run import chaos, main

sys.exit(main(chaos, sys.argv[1:]))
