"""The runner's modules are imported as ``tests.parity``, from whichever folder pytest was started in."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
