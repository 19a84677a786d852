"""Attention kernels, tuned and compiled ahead of time. Importing this touches no GPU."""

from .attention import attention, scaled_dot_product_attention
from .errors import AttentionError, BadArgument, BadType, KernelError, NoKernel, PackageError
from .fallback import fell_back
from .library import kernels
from .merge import merge

__all__ = [
    "AttentionError",
    "BadArgument",
    "BadType",
    "KernelError",
    "NoKernel",
    "PackageError",
    "attention",
    "fell_back",
    "kernels",
    "merge",
    "scaled_dot_product_attention",
]
