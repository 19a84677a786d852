"""Attention kernels, tuned and compiled ahead of time. Importing this touches no GPU."""

from .activation import activate
from .attention import attention, scaled_dot_product_attention
from .blockmask import BlockSparseMask
from .compat import flash_attn_func, replacing_sdpa
from .documents import DocumentMask
from .errors import AttentionError, BadArgument, BadType, KernelError, NoKernel, PackageError
from .fallback import fell_back
from .huggingface import register_with_transformers
from .launch import served
from .library import kernels
from .merge import merge
from .varlen import flash_attn_varlen_func

__all__ = [
    "AttentionError",
    "BadArgument",
    "BadType",
    "BlockSparseMask",
    "DocumentMask",
    "KernelError",
    "NoKernel",
    "PackageError",
    "activate",
    "attention",
    "fell_back",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "kernels",
    "merge",
    "register_with_transformers",
    "replacing_sdpa",
    "scaled_dot_product_attention",
    "served",
]
