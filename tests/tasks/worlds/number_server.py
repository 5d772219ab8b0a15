"""An OpenEnv server on a port of this machine: ``python number_server.py PORT``."""

import sys

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_app


class Guess(Action):
    message: str


class Said(Observation):
    text: str = ""


class Number(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self.number, self.guesses = 0, 0

    def reset(self, seed=None, episode_id=None, **_):
        self.number, self.guesses = (seed or 0) % 10, 0
        return Said(text="Guess a digit.", done=False, reward=0.0)

    def step(self, action, timeout_s=None, **_):
        self.guesses += 1
        said = action.message.strip()
        if said == str(self.number):
            return Said(text="found", done=True, reward=1.0)
        return Said(text="higher" if said < str(self.number) else "lower", done=self.guesses >= 4, reward=0.0)

    @property
    def state(self):
        return State(step_count=self.guesses)


if __name__ == "__main__":
    app = create_app(Number, Guess, Said, env_name="number", max_concurrent_envs=64)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
