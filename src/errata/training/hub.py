"""Sending a trained policy to the hub: its files and its card, and nothing else of the run directory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from peft import PeftModel

from errata.methods import Method
from errata.recipe.config import ErrataConfig
from errata.reports.rundir import RunDirectory, environment
from errata.training.card import card
from errata.training.compat import TRLHooks

IGNORED = (
    *(
        "optimizer*",
        "scheduler*",
        "scaler*",
        "rng_state*",
        "trainer_state.json",
        "training_args.bin",
        "*.jsonl",
        "*.pt",
    ),
    *("manifest.json", "env.json", "config.yaml", "code.patch", "best.safetensors", "errata_state/*", "global_step*/*"),
)
"""What a checkpoint holds besides the policy: training state, and logs with rows of the training data."""
_FOLDER = "policy.hub"


class Publishing(TRLHooks):
    """A trainer whose policies carry a card that says what trained them, with or without the hub."""

    if TYPE_CHECKING:
        args: ErrataConfig
        method: Method

    def card(self, name: str | None = None) -> str:
        """The model card of the policy as it is now, from the run directory's files where there are any."""
        run = RunDirectory(Path(str(self.args.output_dir)))
        written = (run.path / "config.yaml").is_file() and (run.path / "env.json").is_file()
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        config = {
            "model": getattr(self.args, "model", None) or getattr(base.config, "_name_or_path", ""),
            "method": getattr(self.args, "method", None),
            "task": self.args.task,
            "learning_rate": self.args.learning_rate,
            "max_completion_length": self.args.max_completion_length,
            "seed": self.args.seed,
            **(run.config() if written else {}),
        }
        return card(
            name or (self.args.hub_model_id or run.path.resolve().name).split("/")[-1],
            self.method,
            config,
            env=run.env() if written else environment(),
            evaluations=run.read("eval") or self._logged_evaluations(),
            adapter=isinstance(model, PeftModel),
            steps=self.state.global_step,
        )

    def _logged_evaluations(self) -> Sequence[dict[str, Any]]:
        task = self.args.eval_task or self.args.task
        found = [log for log in self.state.log_history if any(key.startswith("eval_") for key in log)]
        return [{"task": task, **{key.removeprefix("eval_"): value for key, value in log.items()}} for log in found]

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write ``README.md`` of the run directory. TRL's further arguments are not used: the card is made from the run."""
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "README.md").write_text(self.card(model_name), encoding="utf-8")

    def save_policy(self, folder: Path) -> None:
        """Write the policy, its tokenizer and its card. Collective: call on every rank."""
        super().save_policy(folder)
        if self.is_world_process_zero():
            (folder / "README.md").write_text(self.card(), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the policy, or its adapter, with its tokenizer and card to ``hub_model_id``. Collective.

        The run's logs, which hold rows of the training data, stay here. Returns what the hub's client returns, on the main
        process.
        """
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        folder = Path(str(self.args.output_dir)) / _FOLDER
        self.save_policy(folder)
        if not self.is_world_process_zero():
            return None
        sent = self._upload(folder, commit_message, token, revision, wait=blocking)
        if blocking:
            shutil.rmtree(folder)
        return sent

    def push_checkpoint(self, folder: Path) -> None:
        """Begin to upload a checkpoint's policy, as ``hub_strategy`` asks for. The card follows at the end."""
        message = f"Training in progress, step {self.state.global_step}"
        self._upload(folder, message, self.args.hub_token, None, wait=False, leave=("README.md",))

    def _upload(
        self,
        folder: Path,
        message: str | None,
        token: str | None,
        revision: str | None,
        *,
        wait: bool,
        leave: Sequence[str] = (),
    ) -> Any:
        client: Any = HfApi()
        return client.upload_folder(
            repo_id=self.hub_model_id,
            folder_path=str(folder),
            commit_message=message,
            token=token,
            revision=revision or self.args.hub_revision,
            run_as_future=not wait,
            ignore_patterns=[*IGNORED, *leave],
        )
