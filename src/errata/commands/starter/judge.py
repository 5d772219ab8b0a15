"""Judges answers: a score, and feedback that the teacher is shown. Columns of the rows are arguments, by their names."""

from errata import Verdict


def judge(completions, answer, **columns):
    verdicts = []
    for completion, right in zip(completions, answer, strict=True):
        text = completion[-1]["content"]
        found = text.rpartition("=")[2]
        if found == right:
            verdicts.append(Verdict(1.0))
        elif not found:
            verdicts.append(Verdict(0.0, "no value after the last =", kind="format"))
        else:
            verdicts.append(Verdict(0.0, f"{found} not {right}", kind="correction", leaks_answer=True))
    return verdicts
