"""Trained networks at work: predictions of images of any size, scores image by image, files for other programs.

Start with `predictor.load`, which `jaxseg.load` is; README.md explains predict, evaluate and export.
"""
