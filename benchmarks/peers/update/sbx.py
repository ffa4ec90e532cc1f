"""SBX, Stable-Baselines3 in JAX: ``SAC.train`` as ``learn`` calls it, 1 or 20 gradient steps in one program."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner
from benchmarks.peers.update.sb3 import SETTINGS, fill_buffer, spaces_only_env


class Sbx(Learner):
    """SBX: ``SAC.train(1)`` as ``learn`` calls it, one program, with Stable-Baselines3's ReplayBuffer."""

    modules = ("sbx", "jax")
    package = "sbx-rl"

    def __init__(self) -> None:
        from sbx import SAC
        from stable_baselines3.common.logger import Logger

        self.sac = SAC("MlpPolicy", spaces_only_env(), **SETTINGS)
        self.sac.set_logger(Logger(None, []))

    def fill(self, rows):
        fill_buffer(self.sac.replay_buffer, rows)

    def load(self, weights):
        import jax

        policy = self.sac.policy

        def renewed(state, names, **more):
            parameters = jax.tree.map_with_path(
                lambda path, _: jax.numpy.array(_named(weights, names, path)), state.params
            )
            return state.replace(params=parameters, opt_state=state.tx.init(parameters), **more)

        policy.actor_state = renewed(policy.actor_state, "actor")
        target = jax.tree.map_with_path(
            lambda path, _: jax.numpy.array(_named(weights, "target_critic", path)), policy.qf_state.target_params
        )
        policy.qf_state = renewed(policy.qf_state, "critic", target_params=target)
        state = self.sac.ent_coef_state
        parameters = jax.tree.map(lambda _: jax.numpy.array(weights["log_temperature"]), state.params)
        self.sac.ent_coef_state = state.replace(params=parameters, opt_state=state.tx.init(parameters))

    def weights(self):
        import jax

        found = {}
        policy = self.sac.policy
        trees = (
            ("actor", policy.actor_state.params),
            ("critic", policy.qf_state.params),
            ("target_critic", policy.qf_state.target_params),
        )
        for network, tree in trees:
            for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
                found[_name(network, path)] = np.array(value)
        (log_temperature,) = jax.tree.leaves(self.sac.ent_coef_state.params)
        return found | {"log_temperature": np.array(log_temperature)}

    def call(self):
        self.sac.train(self.updates, task.BATCH)

    def critic_loss(self):
        return self.sac.logger.name_to_value["train/critic_loss"]  # half of the sum over two critics is their mean


class SbxMany(Sbx):
    """SBX, 20 updates a call: ``SAC.train(20)``, which draws 20 batches at once and runs one program."""

    updates = 20


def _name(network, path):
    """Their "Dense_n/kernel" in our names."""
    layer, part = (key.key for key in path[-2:])
    number = int(layer.removeprefix("Dense_"))
    if network == "actor" and number >= len(task.WIDTHS):
        layer = ("mean", "log_std")[number - len(task.WIDTHS)]
    else:
        layer = str(number)
    return f"{network}/{layer}/{'weight' if part == 'kernel' else part}"


def _named(weights, network, path):
    return weights[_name(network, path)]
