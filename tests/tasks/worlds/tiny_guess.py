"""An environment of several turns, as users of verifiers write them; it breaks where the policy says so."""

import verifiers as vf
from datasets import Dataset


class Guess(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["found"] = False

    async def env_response(self, messages, state, **_):
        text = messages[-1].content.strip()
        if text == "break":
            raise vf.Error("the world broke")
        if text == state["answer"]:
            state["found"] = True
            state["final_env_response"] = [vf.UserMessage(content="found")]
            return state["final_env_response"]
        return [vf.UserMessage(content="higher" if text < state["answer"] else "lower")]


def load_environment(max_turns: int = 4):
    async def found(state):
        return float(state["found"])

    rows = [{"question": "Guess a digit.", "answer": str(i)} for i in range(10)]
    return Guess(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[found]), max_turns=max_turns)
