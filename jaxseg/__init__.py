"""jaxseg: semantic segmentation with mutual information in JAX and Flax."""

__version__ = "0.1.0"
