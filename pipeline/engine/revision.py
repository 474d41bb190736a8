"""Revisions: the owner's version of a written document, `epoch << 40 | seq`."""

from __future__ import annotations

from typing import Final

SEQ_BITS: Final = 40
RENEW_AT: Final = 1 << 39
"""A mirror whose sequence is here begins it anew when it is opened; its owner has a new epoch from then on."""


def revision(epoch: int, seq: int) -> int:
    """A later epoch is above every sequence of an earlier one; it fits a signed 64-bit integer."""
    assert 0 <= seq < 1 << SEQ_BITS and 0 <= epoch < 1 << 22, f"epoch {epoch} or sequence {seq} is out of range"
    return epoch << SEQ_BITS | seq


def split(number: int) -> tuple[int, int]:
    """The epoch and the sequence of a revision."""
    return number >> SEQ_BITS, number & ((1 << SEQ_BITS) - 1)
