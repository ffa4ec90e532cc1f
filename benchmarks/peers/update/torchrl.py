"""TorchRL's SACLoss, run as its own script does (sota-implementations/sac/sac.py of TorchRL): one backward of the three
losses, one grouped Adam, soft update; eager, and compiled by ``compile_with_warmup``.

Taken from the script: the networks, ``loss_function="l2"``, ``delay_qvalue``, the grouping. Different: the sizes and
settings of the task, and ``prefetch=0``: the script's 3 threads draw ahead and compete for the cores, which is slower
here.
"""

from __future__ import annotations

import numpy as np

from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner, torch_gflop


class TorchRL(Learner):
    """TorchRL: SACLoss as in its script sac.py, the three losses at the same old parameters in one backward, one
    grouped Adam, SoftUpdate, TensorDictReplayBuffer; prefetch=0 instead of 3 threads, which are slower here.
    """

    modules = ("torchrl", "tensordict")
    package = "torchrl"
    compiled = False

    def __init__(self) -> None:
        import torch
        from tensordict.nn import TensorDictModule
        from tensordict.nn.distributions import NormalParamExtractor
        from torch import nn
        from torchrl._utils import compile_with_warmup
        from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
        from torchrl.objectives import SACLoss, SoftUpdate, group_optimizers

        torch.manual_seed(0)
        spec = Bounded(-1, 1, (task.ACTION,), dtype=torch.float32)
        settings = {"num_cells": list(task.WIDTHS), "activation_class": nn.ReLU}
        network = MLP(in_features=task.STATE, out_features=2 * task.ACTION, **settings)
        network = nn.Sequential(network, NormalParamExtractor(scale_mapping="biased_softplus_1.0"))
        actor = ProbabilisticActor(
            spec=spec,
            in_keys=["loc", "scale"],
            module=TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
            distribution_class=TanhNormal,
            distribution_kwargs={"low": spec.space.low, "high": spec.space.high, "tanh_loc": False},
            return_log_prob=False,
        )
        critic = MLP(in_features=task.STATE + task.ACTION, out_features=1, **settings)
        value = ValueOperator(in_keys=["action", "observation"], module=critic)
        self.loss = SACLoss(
            actor_network=actor, qvalue_network=value, num_qvalue_nets=task.CRITICS, loss_function="l2",
            delay_actor=False, delay_qvalue=True, alpha_init=1.0, target_entropy=task.TARGET_ENTROPY,
        )  # fmt: skip
        self.loss.make_value_estimator(gamma=task.DISCOUNT)
        soft_update = SoftUpdate(self.loss, eps=1 - task.TAU)
        optimizer = group_optimizers(
            *(
                torch.optim.Adam(list(parameters), lr=task.LEARNING_RATE, eps=task.EPSILON)
                for parameters in (
                    self.loss.actor_network_params.flatten_keys().values(),
                    self.loss.qvalue_network_params.flatten_keys().values(),
                    [self.loss.log_alpha],
                )
            )
        )
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(task.CAPACITY), batch_size=task.BATCH, prefetch=0, pin_memory=False
        )

        def update(sampled):
            losses = self.loss(sampled)
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            soft_update.step()
            return losses.detach()

        self.update = compile_with_warmup(update, mode="reduce-overhead", warmup=0) if self.compiled else update

    def fill(self, rows):
        import torch
        from tensordict import TensorDict

        columns = {name: torch.from_numpy(value) for name, value in rows._asdict().items()}
        count = len(rows.rewards)
        following = {
            "observation": columns["next_observations"],
            "reward": columns["rewards"][:, None],
            "terminated": columns["terminated"][:, None],
            "done": columns["ends"][:, None],
        }
        self.buffer.extend(
            TensorDict(
                {"observation": columns["observations"], "action": columns["actions"], "next": following}, [count]
            )
        )

    def load(self, weights):
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(torch.from_numpy(_to_theirs(weights, name)))
            self.loss.log_alpha.fill_(float(weights["log_temperature"]))

    def weights(self):
        found = {}
        for name, parameter in self._parameters().items():
            found |= _to_ours(name, parameter.detach().numpy().copy())
        return found | {"log_temperature": self.loss.log_alpha.detach().numpy().copy().reshape(())}

    def call(self):
        self.losses = self.update(self.buffer.sample()).clone()

    def critic_loss(self):
        return float(self.losses["loss_qvalue"]) / task.CRITICS  # the sum over the critics

    def gflop(self):
        return None if self.compiled else torch_gflop(self)

    def _parameters(self):
        networks = (
            ("actor", self.loss.actor_network_params),
            ("critic", self.loss.qvalue_network_params),
            ("target_critic", self.loss.target_qvalue_network_params),
        )
        found = {}
        for name, tensors in networks:
            flat = tensors.flatten_keys(".")
            names = list(flat.keys())
            for key in sorted(name for name in names if name.endswith(("weight", "bias"))):
                layer, part = key.split(".")[-2:]
                found[f"{name}/{int(layer) // 2}/{part}"] = flat[key].data
        return found


class TorchRLCompiled(TorchRL):
    """TorchRL, compiled: the same by its ``compile_with_warmup``, mode reduce-overhead."""

    compiled = True


def _to_theirs(weights, name):
    """Their actor's last layer holds mean and scale, their critics read the action first, weights are [.., out, in]."""
    network, layer, part = name.split("/")
    if network == "actor" and int(layer) == len(task.WIDTHS):
        value = np.concatenate([weights[f"actor/mean/{part}"], weights[f"actor/log_std/{part}"]], -1)
    else:
        value = weights[name]
    if part == "bias":
        return value
    if "critic" in network and layer == "0":
        value = np.concatenate([value[:, task.STATE :], value[:, : task.STATE]], 1)
    return np.swapaxes(value, -1, -2).copy()


def _to_ours(name, value):
    network, layer, part = name.split("/")
    if part == "weight":
        value = np.swapaxes(value, -1, -2).copy()
        if "critic" in network and layer == "0":
            value = np.concatenate([value[:, task.ACTION :], value[:, : task.ACTION]], 1)
    if network == "actor" and int(layer) == len(task.WIDTHS):
        return {f"actor/mean/{part}": value[..., : task.ACTION], f"actor/log_std/{part}": value[..., task.ACTION :]}
    return {name: value}
