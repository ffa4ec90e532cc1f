"""Evaluate a checkpoint: success rate, return, length, and a video.

python -m serl_fast.evaluate --checkpoint runs/.../final_model.pth --episodes 50 --video rollout.mp4
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from serl_fast.cli import import_callable, main, parse
from serl_fast.core import Agent
from serl_fast.engine import PolicyRunner
from serl_fast.envs import SETUP_MODES, make_env
from serl_fast.evaluation import EvaluationResult, evaluate
from serl_fast.figures import Film
from serl_fast.interop.policies import build, load_policy
from serl_fast.reward_flags import RewardFlags


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(RewardFlags):
    """Flags of ``evaluate``; those of the reward are in :class:`serl_fast.reward_flags.RewardFlags`.

    Attributes:
        checkpoint: a checkpoint_<step>.pth, a final_model.pth, or a .safetensors policy of ``convert``.
        algorithm: module:callable that built the agent, where it was trained with one of your own.
        env: by default the environment that the checkpoint was trained in.
        episodes: how many.
        stochastic: sample actions as in training; by default the policy's mode acts.
        video: where to write a video.
        video_episodes: episodes in the video.
        seed: episode i is reset with seed + i.
        device: where the policy runs.
    """

    checkpoint: Path
    algorithm: str | None = None
    env: str | None = None
    episodes: int = 50
    stochastic: bool = False
    video: Path | None = None
    video_episodes: int = 3
    seed: int = 2_000_000_000
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 1")
        if self.video and self.video_episodes < 1:
            raise ValueError(f"video_episodes is {self.video_episodes}; it must be at least 1 (no video: no --video)")
        if self.video and not self.video.parent.is_dir():
            raise ValueError(f"video is {self.video}; there is no folder {self.video.parent}")


def evaluate_checkpoint(config: EvaluateConfig) -> EvaluationResult:
    """Rebuild the policy from the checkpoint and run it.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    agent, checkpoint = load_policy(config.checkpoint, _builder(config))
    mode = SETUP_MODES.get(checkpoint.get("setup_mode") or "")
    env_id = config.env or checkpoint.get("env")
    if env_id is None:
        raise ValueError(f"{config.checkpoint} does not say in which environment it acts; give --env")
    env = make_env(
        env_id,
        agent.settings["image_keys"],
        mode,
        render_mode="rgb_array" if config.video else None,
        image_size=checkpoint.get("image_size"),
        rescale=True,
        judge=config.judge(),
    )
    with contextlib.closing(env):
        if config.video and env.render_mode != "rgb_array":
            raise ValueError(f"no video: {env.spec.id if env.spec else env} does not render; leave --video out")
        runner = PolicyRunner(agent, seed=config.seed, device=torch.device(config.device))
        with Film(config.video) if config.video else contextlib.nullcontext() as film:
            return evaluate(
                env,
                lambda observation: runner.act(observation, deterministic=not config.stochastic),
                config.episodes,
                seed=config.seed,
                record_episodes=config.video_episodes,
                film=film.add if film else None,
            )


def _builder(config: EvaluateConfig) -> Callable[[dict[str, Any]], Agent]:
    """What rebuilds the agent from its settings: the package, or the user's own callable."""
    if config.algorithm is None:
        return build
    builder = import_callable(config.algorithm, "algorithm")

    def rebuild(settings: dict[str, Any]) -> Agent:
        try:
            agent: Agent = builder(settings["state_dim"], settings["action_dim"], settings["image_keys"])
        except KeyError as error:
            raise ValueError(f"{config.checkpoint}: its agent's settings have no {error}, which is needed") from None
        return agent

    return rebuild


def run(argv: list[str] | None = None) -> int:
    """Parse, evaluate, print; the exit status."""
    config = parse(EvaluateConfig, argv, description=__doc__ or "")
    result = evaluate_checkpoint(config)
    metrics = result.metrics()
    print(f"episodes      {len(result.successes)}")
    print(f"success rate  {result.success_rate:.1%}")
    if result.true_success_rate is not None:
        print(f"true success  {result.true_success_rate:.1%} (the environment's own verdict)")
    print(f"return        {metrics['evaluation/return']:.3f}")
    print(f"length        {metrics['evaluation/length']:.1f} steps")
    if config.video:
        print(f"video         {config.video}")
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
