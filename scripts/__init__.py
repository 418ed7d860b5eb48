"""Measurements, checks and figures around the package, run from the checkout; README.md lists them."""
