"""`python -m kd_kernels`: the command `kd-kernels`."""

import sys

from kd_kernels.cli import main

sys.exit(main())
