"""An environment of one turn, as users of verifiers write them."""

import verifiers as vf
from datasets import Dataset


def load_environment(n: int = 4):
    async def exact(completion, answer):
        return float(completion[-1]["content"].strip() == answer)

    async def short(completion):
        return float(len(completion[-1]["content"]) < 5)

    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1), "info": {"i": i}} for i in range(n)]
    rubric = vf.Rubric(funcs=[exact, short], weights=[1.0, 0.5])
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), system_prompt="Answer with a number.", rubric=rubric)
