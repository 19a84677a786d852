"""What a thread and an SM can hold, as the sm80 rules ask for it."""

from __future__ import annotations

from fagen.target import Target

REGISTERS_PER_THREAD, REGISTERS_PER_SM = 255, 65536


def padded(dim: int) -> int:
    """A head dimension as computed: the 16 of one mma step is the only padding."""
    return -(-dim // 16) * 16


def fits_registers(registers: int, threads: int, min_ctas: int) -> bool:
    per_thread = REGISTERS_PER_SM // (threads * min_ctas) // 8 * 8
    return registers <= min(REGISTERS_PER_THREAD, per_thread)


def fits_shared(shared: int, min_ctas: int, target: Target) -> bool:
    """Each CTA takes 1 KB more, and the SM holds 1 KB more than one CTA may ask for."""
    return shared <= target.shared_bytes and (
        min_ctas * (shared + 1024) <= target.shared_bytes + 1024
    )
