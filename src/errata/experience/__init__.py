"""What a run remembers of each problem: how hard it is now, what solved it before, which stage of training it is in."""

from errata.experience.buffer import Success, SuccessBuffer
from errata.experience.ledger import PassRateLedger

__all__ = ["PassRateLedger", "Success", "SuccessBuffer"]
