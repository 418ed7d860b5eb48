"""Tests, in folders as the package's."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the checkout
