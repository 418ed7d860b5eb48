"""The releases of jaxlib that are known to compute wrong, refused before anything is computed with them.

In: the version that is installed. Out: nothing, or an `InputError` that says what is wrong with it and what to install.
"""

from importlib import metadata

from jaxseg.errors import InputError

REQUIREMENT = "jax>=0.11.1,<0.13"  # as in pyproject.toml
# Reproduced with both releases on a CPU; 0.11.1, 0.11.2 and 0.12.0.1 pass the same programs (tests/test_floor.py).
FAULTS = {
    "0.10.2": "compiled for a CPU, a batch of matrix products that are summed is silently wrong from row 32,769 on"
    " (github.com/jax-ml/jax/issues/39103)",
    "0.11.0": "compiled for a CPU, sums of products of seven or more dimensions crash or hang"
    " (github.com/jax-ml/jax/issues/39257)",
}


def check_jaxlib(version: str | None = None) -> None:
    """Refuses a jaxlib that computes wrong. To be called at the start of every command that computes; imports no JAX.

    Args:
      version: of jaxlib; default: the one that is installed.

    Raises:
      InputError: the release is one of `FAULTS`.

    >>> check_jaxlib("0.12.0.1")
    >>> check_jaxlib("0.10.2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    jaxseg.errors.InputError: jaxlib 0.10.2 is installed, ...
    """
    version = version or metadata.version("jaxlib")
    if fault := FAULTS.get(version):
        raise InputError(
            f"jaxlib {version} is installed, whose results cannot be trusted: {fault}. Install another release:"
            f' pip install "{REQUIREMENT}" (Python 3.12 or newer).'
        )
