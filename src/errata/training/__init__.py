"""The trainer: TRL's GRPO trainer, plus verdicts, teacher contexts, scores and the two-stream loss."""
