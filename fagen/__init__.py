"""fagen: generates, verifies and tunes FlashAttention kernels, and emits them as a package."""

__version__ = "0.1.0"
