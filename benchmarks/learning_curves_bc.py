"""Behaviour cloning on demonstrations of a simulated task, evaluated along the way; a part of `learning_curves`.

python -m benchmarks.learning_curves_bc --demo_paths demos.pkl --save_dir runs/bc
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serl_fast.agents.bc import BCConfig, bc
from serl_fast.agents.parts import normalize_states
from serl_fast.cli import main, parse
from serl_fast.data.batches import to_tensors
from serl_fast.data.demonstrations import demonstrations_to_store, load_demonstrations
from serl_fast.engine import Engine, EngineConfig, PolicyPublisher, PolicyRunner, default_execution
from serl_fast.envs import make_env
from serl_fast.evaluation import evaluate
from serl_fast.logging import RunLogger
from serl_fast.replay import ReplayStore


@dataclass(frozen=True)
class BCRunConfig:
    """Flags of ``benchmarks.learning_curves_bc``.

    Attributes:
        demo_paths: demonstration pickles.
        save_dir: receives ``metrics.csv``.
        env: where the policy is evaluated.
        max_steps: gradient steps.
        batch_size: transitions per gradient step.
        evaluations: how many along the way.
        eval_episodes: episodes of each.
        final_eval_episodes: fresh episodes after training.
        seed: of everything.
    """

    demo_paths: tuple[Path, ...]
    save_dir: Path
    env: str = "serl_robots/PickCube-v0"
    max_steps: int = 6000
    batch_size: int = 256
    evaluations: int = 20
    eval_episodes: int = 20
    final_eval_episodes: int = 50
    seed: int = 0


def run(argv: list[str]) -> int:
    """Train and evaluate; the exit status."""
    config = parse(BCRunConfig, argv, description=__doc__ or "")
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    env = make_env(config.env)
    shape = env.action_space.shape
    assert shape is not None
    transitions: list[Any] = list(load_demonstrations(config.demo_paths, (), shape[0]))
    store = ReplayStore.from_example(transitions[0], len(transitions), seed=config.seed)
    demonstrations_to_store(transitions, store)
    states = np.stack([transition["observations"]["state"] for transition in transitions])
    # Without cameras the state is the whole observation and passes as it is.
    agent = bc(states.shape[1], shape[0], (), BCConfig(proprioception_dim=None))
    normalize_states(agent.networks, torch.from_numpy(states))
    engine = Engine(agent, EngineConfig(default_execution()), seed=config.seed)
    runner, publisher = PolicyRunner(agent, seed=config.seed), PolicyPublisher()
    logger = RunLogger(config.save_dir)
    sampler = store.sampler(fields=("observations", "actions"))

    def success_rate(episodes: int, seed: int) -> float:
        publisher.publish(agent.networks, agent.policy_networks, engine.updates)
        runner.refresh(publisher)
        return evaluate(env, lambda seen: runner.act(seen, deterministic=True), episodes, seed=seed).success_rate

    interval = max(config.max_steps // config.evaluations, 1)
    for step in range(1, config.max_steps + 1):
        metrics = engine.update(to_tensors(sampler.sample(config.batch_size), engine.device))
        if step % interval == 0:
            values = {name: value.item() for name, value in metrics.items()}
            logger.log({**values, "evaluation/success_rate": success_rate(config.eval_episodes, 10_000)}, step=step)
    rate = success_rate(config.final_eval_episodes, 20_000)
    logger.log({"final_evaluation/success_rate": rate}, step=config.max_steps)
    logger.close()
    env.close()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
