"""x"""
from jaxseg.config import check_variant, default


def get_config(variant: str = ""):
    check_variant(variant, ("released",))
    config = default()
    config.data.name = "camvid"
    return config
