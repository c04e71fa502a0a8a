"""Conformance of decoders, core experiments, and studies of this codec; see README.md."""

import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[1]

# `python -m conformance...` looks for nnr_codec beside this folder first. Unless its core was built
# there, the installed one is meant.
if not any(path.suffix in (".so", ".pyd") for path in (_CHECKOUT / "nnr_codec").glob("_core.*")):
    _beside = [entry for entry in sys.path if Path(entry).resolve() == _CHECKOUT]
    sys.path[:] = [entry for entry in sys.path if entry not in _beside] + _beside
