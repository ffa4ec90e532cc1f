"""Every agent, small, with batches to train it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serl_fast.agents.bc import BCConfig, bc
from serl_fast.agents.calql import CalQLConfig, calql
from serl_fast.agents.cql import CQLConfig, cql
from serl_fast.agents.drq import drq
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.iql import IQLConfig, iql
from serl_fast.agents.rebrac import ReBRACConfig, rebrac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.agents.td3bc import TD3BCConfig, td3bc
from serl_fast.core import Agent, Batch
from serl_fast.engine import Engine, EngineConfig
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier
from serl_fast.rewards.vice import ViceConfig, vice

STATE, SIDE, CAMERAS = 5, 32, ("front", "wrist")
HIDDEN = {"hidden_widths": (32, 32)}
STATES = {**HIDDEN, "proprioception_dim": 16}
SMALL_CNN = {"encoder": "small", "image_size": (SIDE, SIDE)}


class FrozenTrunk(nn.Module):
    """One frozen convolution: compiles in a moment where ResNet-10 takes a minute."""

    feature_shape = (4, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 8, stride=8)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [..., 32, 32, 3] to [..., 4, 4, 8]."""
        x = self.convolution(images.flatten(0, -4).permute(0, 3, 1, 2) / 255.0)
        return x.permute(0, 2, 3, 1).unflatten(0, images.shape[:-3])


@dataclass(frozen=True)
class Case:
    """An agent and how it is trained.

    Attributes:
        build: makes it, with weights from torch's global generator.
        action_dim: width of the actions.
        cameras: whether it sees any.
        updates: in the comparison; compiled convolutions and images take their time.
        graphs: compiled; 2 where there is a step with the actor and one without.
    """

    build: Callable[[], Agent]
    action_dim: int = 6
    cameras: bool = False
    updates: int = 100
    graphs: int = 2


def _all_options() -> SACConfig:
    """What the presets leave out: every part of Adam, another standard deviation, a reward bias, stacked subsets."""
    return SACConfig(
        **STATES,
        critic_ensemble_size=5,
        critic_subsample_size=2,
        std_parameterization="uniform",
        warmup_steps=10,
        cosine_decay_steps=80,
        weight_decay=1e-3,
        clip_gradient_norm=1.0,
        reward_bias=-0.1,
    )


def _compat(**changes: object) -> SACConfig:
    return SACConfig(**STATES, compat="hil_serl", **changes)  # type: ignore[arg-type]


# ReBRAC divides Q by its mean magnitude; at the start that is nearly 0, and the policy goes where rounding sends it,
# unless the data weigh enough.
NEAR_THE_DATA = {"actor_penalty": 1.0, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}

CASES = {
    "sac": Case(lambda: sac(STATE, 6, config=SACConfig(**STATES))),
    "sac, every option": Case(lambda: sac(STATE, 6, config=_all_options())),
    "redq": Case(lambda: sac(STATE, 6, config=SACConfig.redq(**HIDDEN, critic_ensemble_size=5))),
    "hybrid": Case(lambda: hybrid_sac(STATE, 1, config=SACConfig(**STATES)), 7),
    "hybrid, two arms": Case(lambda: hybrid_sac(STATE, 2, config=SACConfig(**STATES)), 14),
    "compat": Case(
        lambda: hybrid_sac(
            STATE, 1, config=_compat(critic_ensemble_size=5, critic_subsample_size=2, backup_entropy=True)
        ),
        7,
    ),
    "pixels, ResNet-10": Case(lambda: hybrid_sac(STATE, 1, CAMERAS, SACConfig(**HIDDEN)), 7, True, 10),
    "pixels, compat": Case(lambda: hybrid_sac(STATE, 1, CAMERAS, _compat(), trunk=FrozenTrunk()), 7, True, 10),
    "drq": Case(
        lambda: drq(STATE, 6, CAMERAS, SACConfig.drq(**HIDDEN, critic_ensemble_size=3, image_size=(SIDE, SIDE))),
        6,
        True,
        10,
    ),
    "bc": Case(lambda: bc(STATE, 6, CAMERAS, BCConfig(**HIDDEN, **SMALL_CNN)), 6, True, 5, 1),
    "bc, squashed": Case(lambda: bc(STATE, 6, (), BCConfig(**HIDDEN, squash=True)), 6, False, 20, 1),
    "iql": Case(lambda: iql(STATE, 6, (), IQLConfig(**HIDDEN, dropout=0.1)), updates=50),
    "td3bc": Case(lambda: td3bc(STATE, 6, (), TD3BCConfig(**HIDDEN)), updates=50),
    "rebrac, pixels": Case(
        lambda: rebrac(STATE, 6, CAMERAS, ReBRACConfig(**HIDDEN, **NEAR_THE_DATA), trunk=FrozenTrunk()),
        cameras=True,
        updates=10,
    ),
    "cql": Case(lambda: cql(STATE, 6, (), CQLConfig(**HIDDEN, max_target_backup=True, target_gap=0.8))),
    "calql": Case(lambda: calql(STATE, 6, (), CalQLConfig(**HIDDEN, alpha=5.0)), updates=50),
    "classifier": Case(lambda: reward_classifier(CAMERAS, ClassifierConfig(hidden=32, **SMALL_CNN)), 6, True, 5, 1),
    "classifier of 3": Case(
        lambda: reward_classifier(CAMERAS, ClassifierConfig(classes=3, hidden=32), trunk=FrozenTrunk()), 6, True, 5, 1
    ),
    "vice": Case(lambda: vice(CAMERAS, ViceConfig(hidden=32, bottleneck=32, **SMALL_CNN)), 6, True, 5, 1),
    "vice, compat": Case(
        lambda: vice(CAMERAS, ViceConfig(hidden=32, bottleneck=32, compat="hil_serl"), trunk=FrozenTrunk()),
        6,
        True,
        5,
        1,
    ),
}


def batches(case: Case, count: int) -> Iterator[Batch]:
    """Batches for any of the agents: 32 rows, or 4 where there are images."""
    generator = torch.Generator().manual_seed(1)
    size = 4 if case.cameras else 32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def observe() -> dict[str, Tensor]:
        observation = {"state": normal(size, STATE)}
        if case.cameras:
            shape = (len(CAMERAS), size, SIDE, SIDE, 3)
            images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            observation |= dict(zip(CAMERAS, images, strict=True))
        return observation

    for _ in range(count):
        batch = {
            "observations": observe(),
            "next_observations": observe(),
            "actions": torch.tanh(normal(size, case.action_dim)),
            "rewards": normal(size),
            "discounts": 0.97 * (normal(size) > -1).float(),
            "grasp_penalty": -0.02 * (normal(size) > 0).float(),
            "labels": torch.randint(2, (size,), generator=generator),
        }
        # Without a draw: the batches of the agents that came first stay as they were.
        yield {**batch, "next_actions": batch["actions"].roll(1, 0), "mc_returns": batch["rewards"] + 1}


def train(
    case: Case, execution: str = "eager", precision: str = "float32", updates: int | None = None
) -> tuple[Engine, dict[str, float]]:
    """Train from the same start with the same noise; the engine, and the last metrics of every kind.

    float16 starts from a loss scale at which nothing overflows: a skipped update would be one less to compare.
    """
    torch.manual_seed(0)
    engine = Engine(case.build(), EngineConfig(execution, precision, strict=True), seed=5)  # type: ignore[arg-type]
    if precision == "float16":
        state = engine.state_dict()
        state["loss_scaling"]["loss_scale"].fill_(2.0**5)
        engine.load_state_dict(state)
    metrics: dict[str, Tensor] = {}
    for index, batch in enumerate(batches(case, updates or case.updates)):
        metrics.update(engine.update(batch, with_actor=index % 2 == 1))
    return engine, {name: value.item() for name, value in metrics.items()}


def distance(engine: Engine, reference: Engine, case: Case) -> dict[str, float]:
    """For each network, how far it is from the reference's, relative to how far training moved that.

    Norms of all of a network's trained parameters together: a compiled or rougher sum turns near-zero gradients into
    steps of up to the learning rate in a few weights, so that the largest single difference says nothing.
    """
    torch.manual_seed(0)
    start = case.build().networks
    found = {}
    for name in reference.agent.trained_networks:
        if not any(p.requires_grad for p in start[name].parameters()):
            continue  # an encoder that passes the state through
        flat = [
            torch.cat([p.detach().flatten() for p in networks[name].parameters() if p.requires_grad])
            for networks in (engine.agent.networks, reference.agent.networks, start)
        ]
        found[name] = ((flat[0] - flat[1]).norm() / (flat[1] - flat[2]).norm()).item()
    return found
