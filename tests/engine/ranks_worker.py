"""What the processes of ``test_ranks`` run."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import AdamConfig, Agent
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.ranks import Ranks

ROWS, UPDATES = 16, 10


def make_agent(compat: str | None = None) -> Agent:
    torch.manual_seed(0)
    config = SACConfig(
        hidden_widths=(16, 16), proprioception_dim=None, critic_ensemble_size=4, critic_subsample_size=2, compat=compat
    )
    agent = build_agent(5, 7, 1, (), config)
    clipped = {name: AdamConfig(learning_rate=3e-3, clip_gradient_norm=0.5) for name in agent.optimized}
    return dataclasses.replace(agent, optimizers=clipped)


def batch_of(update: int) -> dict:
    generator = torch.Generator().manual_seed(update)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "observations": {"state": normal(ROWS, 5)},
        "next_observations": {"state": normal(ROWS, 5)},
        "actions": torch.cat([normal(ROWS, 6).tanh(), normal(ROWS, 1).sign()], 1),
        "rewards": normal(ROWS),
        "discounts": torch.full((ROWS,), 0.9),
        "grasp_penalty": torch.zeros(ROWS),
    }


def rows(tree: dict, part: slice) -> dict:
    return {k: rows(v, part) if isinstance(v, dict) else v[part] for k, v in tree.items()}


def joint(batches: list) -> dict:
    """Batches one below the other."""
    first = batches[0]
    return torch.cat(batches) if isinstance(first, torch.Tensor) else {k: joint([b[k] for b in batches]) for k in first}


def train(engine: Engine, part: slice, poison: int | None = None, actor: bool = True, block: int = 1) -> dict:
    """Take the updates on ``part`` of every batch, every second with the ``actor``, or in blocks of so many.

    In the batch ``poison`` the last row's reward is not a number.
    """
    given = [batch_of(update) for update in range(UPDATES)]
    if poison is not None and poison >= 0:
        given[poison]["rewards"][-1] = torch.nan
    parts = [rows(batch, part) for batch in given]
    for update in range(0, UPDATES, block):
        last = update + block - 1
        metrics = engine.update_block(joint(parts[update : last + 1]), block, with_actor=actor and last % 2 == 1)
    return {name: float(value) for name, value in metrics.items()}


def main(directory: str, execution: str, compat: str, poison: str, block: str) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(torch.device("cpu"), timeout=240)
    agent = ranks.share_noise(make_agent(compat or None), torch.device("cpu"))
    engine = Engine(agent, EngineConfig(execution, strict=True), seed=5, average=ranks.average)
    share = ranks.share(ROWS)
    error, metrics = "", {}
    try:
        mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
        metrics = ranks.mean(train(engine, mine, int(poison), actor=execution == "eager", block=int(block)))
    except RuntimeError as raised:
        error = str(raised)
    content = {"networks": agent.networks.state_dict(), "error": error, "metrics": metrics, "updates": engine.updates}
    torch.save(content, Path(directory) / f"rank{ranks.rank}.pth")
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # skips seconds of tearing down
