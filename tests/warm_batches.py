"""Imported once by the server that test processes are forked from: what they need is then loaded and compiled."""

import batches  # noqa: F401
from reg4pru_monai.batch.measurements import warm_up

warm_up()
