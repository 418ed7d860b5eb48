"""The losses: terms of single pixels, of regions, of peers, and their sum.

Pure functions of logits and labels; README.md explains region mutual information and mutual learning.
"""

from jaxseg.losses.mutual import mutual_kl
from jaxseg.losses.objective import pixel_and_rmi_loss
from jaxseg.losses.rmi import rmi_loss, rmi_lower_bound
from jaxseg.losses.standalone import cross_entropy_loss, dice_loss, focal_loss, lovasz_loss, tversky_loss

__all__ = [
    "cross_entropy_loss",
    "dice_loss",
    "focal_loss",
    "lovasz_loss",
    "mutual_kl",
    "pixel_and_rmi_loss",
    "rmi_loss",
    "rmi_lower_bound",
    "tversky_loss",
]
