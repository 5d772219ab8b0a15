"""State that methods keep across steps: each problem's pass rate, stored successes, failures with feedback, the stage.

Plain state, keyed by the task's stable ``problem_id``, bounded, and saved as JSON. Nothing here is random and nothing
depends on the process: fed the same results in the same order, every process holds the same state, byte for byte.
"""

from errata.experience.buffer import Success, SuccessBuffer
from errata.experience.bundle import Experience
from errata.experience.curriculum import Curriculum
from errata.experience.history import FeedbackHistory
from errata.experience.ledger import PassRateLedger
from errata.experience.memory import Memory

__all__ = ["Curriculum", "Experience", "FeedbackHistory", "Memory", "PassRateLedger", "Success", "SuccessBuffer"]
