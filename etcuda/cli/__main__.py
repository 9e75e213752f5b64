"""``python -m etcuda.cli``."""

from __future__ import annotations

import sys

from etcuda.cli import main

sys.exit(main())
