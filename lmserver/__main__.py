"""`python -m lmserver`."""

from __future__ import annotations

import sys

from lmserver.cli import main

sys.exit(main())
