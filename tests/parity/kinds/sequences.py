"""The learner's loop: a schedule of critic-only and full updates, Adam's state carried along."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.core import Agent, Batch, Loss, Noise, Objective
from serl_fast.engine import Engine, EngineConfig
from serl_fast.interop.flax_names import Leaf, agent_leaves
from tests.parity.fixture import Fixture
from tests.parity.kinds.agents import all_gradients, compare_info, compare_losses, gradient_terms
from tests.parity.library import Library
from tests.parity.parameters import Slack, compare_parameters, compare_statistics, values_of
from tests.parity.recorded import batch_of, build_agent, noise_of


def utd(fixture: Fixture, library: Library) -> None:
    """Every step's losses and reports, statistics after it, snapshots, and what is left at the end."""
    agent, config = build_agent(fixture, library, "step0/batch")
    loop = Loop(agent)
    online, target = agent_leaves(agent.networks), agent_leaves(agent.networks, target=True)
    rate = config.target_update_rate
    after: dict[str, list[dict[str, Tensor]]] = {"params": [], "target_params": []}
    slack: dict[str, list[dict[str, np.ndarray]]] = {"params": [], "target_params": []}
    rounding = Slack({objective.name: agent.optimizers[objective.name] for objective in every_objective(agent)})
    largest: dict[str, float] = {}  # terms of gradients that are means, see `gradient_terms`
    schedule = fixture.config["schedule"]
    fixture.compare_setting("steps", len(schedule), len({n.split("/")[0] for n in fixture.arrays if "/batch/" in n}))
    for number, names in enumerate(schedule):
        at = f"step{number}"
        batch = batch_of(fixture, f"{at}/batch", fixture.config["discount"])
        noise = noise_of(fixture, f"{at}/noise")
        with torch.no_grad():
            prepared = agent.prepare(agent.networks, batch, noise)
        terms = compare_losses(fixture, f"{at}/", agent, config, prepared, noise)
        for name in names:
            for path, value in gradient_terms(agent, name, terms).items():
                largest[path] = max(largest.get(path, 0.0), value)
        slack["params"].append(rounding.step(all_gradients(agent, prepared, noise, names)))
        slack["target_params"].append(averaged(slack, rate if "critic" in names else 0.0))
        compare_info(fixture, f"{at}/info", loop.update(batch, noise, names), terms)
        after["params"].append(values_of(online))
        after["target_params"].append(values_of(target))
        compare_parameters(fixture, f"after_step{number}/params", after["params"][-1], slack["params"][-1])
    for root, steps in after.items():
        compare_statistics(fixture, f"stats/{root}", steps, "parameter norm", slack=slack[root])
        compare_parameters(fixture, f"final_{root}", steps[-1], slack[root][-1])
    compare_adam(fixture, loop.engine, online, largest)


def every_objective(agent: Agent) -> tuple[Objective, ...]:
    """The objectives of both steps."""
    return agent.critic_step + agent.actor_step


def averaged(slack: dict[str, list[dict[str, np.ndarray]]], rate: float) -> dict[str, np.ndarray]:
    """The slack of the targets after one more average."""
    last = slack["target_params"][-1] if slack["target_params"] else {}
    return {path: rate * new + (1 - rate) * last.get(path, 0.0) for path, new in slack["params"][-1].items()}


class Loop:
    """An engine that updates whichever networks a step names, with that step's noise.

    Args:
        agent: whose objectives are minimised.
    """

    def __init__(self, agent: Agent) -> None:
        self.noise: Noise = {}
        self.agent = dataclasses.replace(agent, draw_noise=lambda *_: self.noise)
        self.engine = Engine(self.agent, EngineConfig("eager"))

    def update(self, batch: Batch, noise: Noise, names: Sequence[str]) -> dict[str, Tensor]:
        """One update of the networks ``names``; by the engine's own two kinds of step where it is one of them."""
        self.noise = noise
        critics = {objective.name for objective in self.agent.critic_step}
        everything = {objective.name for objective in every_objective(self.agent)}
        if set(names) in (critics, everything):
            return self.engine.update(batch, with_actor=set(names) == everything)
        # An engine that knows another kind of step takes over for one step. What is not asked for steps with gradient
        # zero there too, and the targets move only with the critics.
        objectives = tuple(o if o.name in names else idle(o) for o in every_objective(self.agent))
        targets = self.agent.targets if "critic" in names else ()
        agent = dataclasses.replace(self.agent, critic_step=objectives, actor_step=(), targets=targets)
        other = Engine(agent, EngineConfig("eager"))
        other.load_state_dict(self.engine.state_dict())
        metrics = other.update(batch)
        self.engine.load_state_dict(other.state_dict())
        return metrics


def idle(objective: Objective) -> Objective:
    """The objective with a loss of zero, and gradient zero in all that it trains."""

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        parameters = [p for name in objective.trains for p in networks[name].parameters() if p.requires_grad]
        return Loss(sum((0.0 * p.sum() for p in parameters), torch.zeros(())), {})

    return dataclasses.replace(objective, loss=loss)


def compare_adam(fixture: Fixture, engine: Engine, leaves: Sequence[Leaf], largest: Mapping[str, float]) -> None:
    """Both moments of every network's Adam after the last step, zero where it reaches nothing, and its count.

    The first moment is a weighted sum of gradients g and rounds as their largest terms T do. The second is one of
    squares, v = sum w g^2, and rounds by sum 2 w |g| dg <= 2 sqrt(v sum w) dg, sum w = 1 - beta2^t.
    """
    for name, state in engine.adam.items():
        for moment, values in (("mu", state.first), ("nu", state.second)):
            by_parameter = dict(zip(map(id, state.parameters), values, strict=True))
            ours = {
                leaf.path: leaf.to_flax(by_parameter.get(id(leaf.parameter), torch.zeros_like(leaf.parameter)))
                for leaf in leaves
            }
            terms = largest
            if moment == "nu":
                weight = 1 - engine.agent.optimizers[name].beta2 ** float(state.count)
                terms = {path: 2 * term * math.sqrt(float(ours[path]) * weight) for path, term in largest.items()}
            compare_statistics(fixture, f"stats/adam_{moment}/{name}", ours, "gradient norm", terms=terms)
    if (recorded := fixture.config.get("adam_count_at_end")) is not None:
        counts = {name: int(state.count) for name, state in engine.adam.items()}
        fixture.compare_setting("adam_count_at_end", counts, recorded)
