"""Whether critics that saw data alone still speak of the data: their values beside what the data achieved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from serl_fast.agents.hybrid_sac import split_action
from serl_fast.core import Agent, Observations, require_policy
from serl_fast.data.batches import to_tensors
from serl_fast.data.offline import Summary, known
from serl_fast.replay import ReplayStore

ROWS = 2048
CHUNK = 256
SATURATED = 0.99  # magnitude from which on an action counts as one at its limit

FAR = 0.1
"""Mean square of a coordinate of pi(s) - a. Measured on demonstrations of experts alone: 0.18 and more where the policy
failed always, 0.022 and less where it succeeded."""
GAP = 0.013
"""(Q(policy) - Q(data)) / range of the Monte-Carlo returns. Measured likewise: 0.019 and more, 0.008 and less."""
IMPOSSIBLE = 0.1
"""By how much of that range Q(policy) may exceed the highest Monte-Carlo return of the data."""
IN_A_ROW = 2
"""So many measurements must agree."""
SETTLED = 1000
"""Gradient steps before which none counts: fresh networks are anywhere."""


class Diagnostics:
    """Measures, on rows of the data that stay the same:

    * ``offline/q_data``: mean of Q(s, a), the mean over the ensemble, a from the data;
    * ``offline/q_policy``: mean of Q(s, pi(s)), pi(s) the mode;
    * ``offline/q_gap``: their difference;
    * ``offline/mc_return``: mean of the data's discounted Monte-Carlo returns, where they are known: Q(data) of the
      policy that made them, but for what followed behind time limits;
    * ``offline/q_error``: Q(data) above that;
    * ``offline/action_distance``: mean square of a coordinate of pi(s) - a;
    * ``offline/saturated`` and ``offline/saturated_data``: part of the coordinates beyond ±0.99, of pi(s) and of a.

    Of an agent without critics (``networks`` has no "critic") the last three.

    Args:
        agent: acts by ``policy``; its critics take (features of ``networks["encoder"]``, actions) and return [E, B].
        store: the data, with the field ``mc_returns``.
        summary: of the data.
        device: where the networks are.
        seed: of the choice of rows, at most 2048.
    """

    def __init__(self, agent: Agent, store: ReplayStore, summary: Summary, device: torch.device, seed: int) -> None:
        self._agent, self._policy, self._summary, self._device = agent, require_policy(agent), summary, device
        count = min(len(store), ROWS)
        self._store, self._rows = store, np.sort(np.random.default_rng(seed).choice(len(store), count, replace=False))
        self._crossed = 0
        self._warned = False
        self._newest: dict[str, float] = {}

    def measure(self, updates: int) -> dict[str, float]:
        """The metrics for the networks as they are after ``updates`` gradient steps; remembers what they cross."""
        with torch.no_grad():
            parts = [self._of(rows) for rows in np.split(self._rows, range(CHUNK, len(self._rows), CHUNK))]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        values["offline/mc_return"] = values["offline/mc_return"][known(values["offline/mc_return"].numpy())]
        means = {name: float(value.mean()) for name, value in values.items()}
        if "offline/q_data" in means:
            means["offline/q_gap"] = means["offline/q_policy"] - means["offline/q_data"]
            means["offline/q_error"] = means["offline/q_data"] - means["offline/mc_return"]
        self._newest = means
        self._crossed = self._crossed + 1 if updates >= SETTLED and self.crossed(means) else 0
        return means

    def crossed(self, means: dict[str, float]) -> list[str]:
        """What of the measured ``means`` crosses its threshold, in words."""
        if "offline/q_gap" not in means or not self._summary.known:
            return []
        spread = max(self._summary.mc_highest - self._summary.mc_lowest, 1e-9)
        gap, distance = means["offline/q_gap"] / spread, means["offline/action_distance"]
        found = []
        if gap > GAP and distance > FAR:
            found.append(
                f"the policy is {distance:.2g} per dimension (mean square) from the data's actions, and the critics "
                f"value it {gap:.1%} of the returns' range above them (thresholds {FAR:g} and {GAP:.1%})"
            )
        if means["offline/q_policy"] > self._summary.mc_highest + IMPOSSIBLE * spread:
            found.append(
                f"Q(policy) is {means['offline/q_policy']:.4g}; no transition of the data returned more than "
                f"{self._summary.mc_highest:.4g}"
            )
        return found

    def warning(self) -> str | None:
        """One warning, once, when measurements in a row cross the thresholds."""
        if self._warned or self._crossed < IN_A_ROW:
            return None
        self._warned = True
        return (
            f"warning: {'; '.join(self.crossed(self._newest))}. Such values come from no data. After demonstrations of "
            "experts alone that means failure; after mixed data it may be progress: evaluate. How to stay closer to "
            "the data: docs/guides/offline.md"
        )

    def _of(self, rows: Any) -> dict[str, Tensor]:
        """The metrics of some rows, by row (and coordinate), on the host."""
        batch = to_tensors(self._store.batch_at(rows), self._device)
        observations, actions = batch["observations"], batch["actions"]
        chosen = self._policy(self._agent.networks, observations, None)
        found = {
            "offline/mc_return": batch["mc_returns"],
            "offline/action_distance": (chosen - actions).square(),
            "offline/saturated": (chosen.abs() > SATURATED).float(),
            "offline/saturated_data": (actions.abs() > SATURATED).float(),
        }
        if "critic" in self._agent.networks:
            found["offline/q_data"] = self._q(observations, actions)
            found["offline/q_policy"] = self._q(observations, chosen)
        # Copies, as float64: a column of a batch may share its memory with the batch's images, and would keep them.
        return {name: value.flatten().cpu().double() for name, value in found.items()}

    def _q(self, observations: Observations, actions: Tensor) -> Tensor:
        """Mean over the ensemble of Q_e(s, a), [B]."""
        networks, grippers = self._agent.networks, self._agent.settings.get("grippers")
        continuous = split_action(actions, grippers)[0] if grippers else actions
        q: Tensor = networks["critic"](networks["encoder"](observations), continuous)  # [E, B]
        return q.mean(0)
