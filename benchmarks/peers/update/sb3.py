"""Stable-Baselines3's SAC: ``SAC.train(1)`` as ``learn`` calls it, with its own replay buffer and defaults."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner, torch_gflop


def fill_buffer(buffer, rows) -> None:
    """Put transitions into Stable-Baselines3's ReplayBuffer of one environment; SBX uses the same."""
    buffer.observations[:, 0], buffer.next_observations[:, 0] = rows.observations, rows.next_observations
    buffer.actions[:, 0], buffer.rewards[:, 0] = rows.actions, rows.rewards
    buffer.dones[:, 0], buffer.timeouts[:, 0] = rows.ends, rows.ends & ~rows.terminated
    buffer.pos, buffer.full = 0, True


def spaces_only_env():
    """An environment of the task's spaces, which is never stepped."""
    import gymnasium

    class SpacesOnly(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.STATE,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (task.ACTION,), np.float32)

        def reset(self, **_):
            return np.zeros(task.STATE, np.float32), {}

    return SpacesOnly()


SETTINGS = {
    "learning_rate": task.LEARNING_RATE,
    "buffer_size": task.CAPACITY,
    "batch_size": task.BATCH,
    "tau": task.TAU,
    "gamma": task.DISCOUNT,
    "policy_kwargs": {"net_arch": list(task.WIDTHS)},
    "seed": 0,
}


class StableBaselines3(Learner):
    """Stable-Baselines3: ``SAC.train(1)`` as ``learn`` calls it, with its own ReplayBuffer, settings of the task."""

    modules = ("stable_baselines3",)
    package = "stable-baselines3"

    def __init__(self) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import Logger

        self.sac = SAC("MlpPolicy", spaces_only_env(), device="cpu", **SETTINGS)
        self.sac.set_logger(Logger(None, []))

    def fill(self, rows):
        fill_buffer(self.sac.replay_buffer, rows)

    def load(self, weights):
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(torch.from_numpy(_part(weights, name).T.copy()))
            self.sac.log_ent_coef.fill_(float(weights["log_temperature"]))

    def weights(self):
        found = {name: parameter.detach().numpy().T.copy() for name, parameter in self._parameters().items()}
        for name in [name for name in found if name.endswith("@0")]:
            stem = name.removesuffix("@0")
            found[stem] = np.stack([found.pop(f"{stem}@{member}") for member in range(task.CRITICS)])
        return found | {"log_temperature": self.sac.log_ent_coef.detach().numpy().copy().reshape(())}

    def call(self):
        self.sac.train(self.updates, task.BATCH)

    def critic_loss(self):
        return self.sac.logger.name_to_value["train/critic_loss"]  # half of the sum over two critics is their mean

    def gflop(self):
        return torch_gflop(self)

    def _parameters(self):
        """Parameters by name; "@e" is member e of the critics."""
        actor, critics = self.sac.actor, (("critic", self.sac.critic), ("target_critic", self.sac.critic_target))
        layers = {f"actor/{n}": actor.latent_pi[2 * n] for n in range(len(task.WIDTHS))}
        layers |= {"actor/mean": actor.mu, "actor/log_std": actor.log_std}
        found = {
            f"{name}/{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")
        }
        for name, critic in critics:
            for member, network in enumerate(critic.q_networks):
                for n in range(len(task.WIDTHS) + 1):
                    for part in ("weight", "bias"):
                        found[f"{name}/{n}/{part}@{member}"] = getattr(network[2 * n], part)
        return found


def _part(weights, name):
    stem, _, member = name.partition("@")
    return weights[stem][int(member)] if member else weights[stem]
