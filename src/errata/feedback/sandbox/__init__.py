"""Calls that must not hang, crash or harm the training process.

``run`` runs an untrusted program isolated from the machine, ``worker`` calls a trusted function in another process, and
``judge`` calls a verifier under a time limit.
"""

from errata.feedback.sandbox.run import OUTPUT_BYTES, SandboxResult, Status, isolation, run_python

__all__ = ["OUTPUT_BYTES", "SandboxResult", "Status", "isolation", "run_python"]
