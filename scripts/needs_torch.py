"""PyTorch, for the scripts that measure beside it or compare with it: `from scripts.needs_torch import torch`.

Where it is not installed, they end here: a sentence and status 2.
"""

import sys

try:
    import torch
except ImportError:
    print('error: this measures beside PyTorch, which is not installed: pip install -e ".[torch]"', file=sys.stderr)
    sys.exit(2)

__all__ = ["torch"]
