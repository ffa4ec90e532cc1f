"""LeRobot's SAC (lerobot/policies/sac) in the order of its learner's loop (lerobot/rl/learner.py)."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.lerobot_parts import lerobot_module
from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner, torch_gflop


class LeRobot(Learner):
    """LeRobot: SACPolicy and ReplayBuffer stepped as its learner steps them (a batch checked for NaN; a loss, clipping
    at 40 and Adam for critics, actor, temperature; targets; losses and gradient norms read on the host), without
    pushing weights and logging. Its state encoder and LayerNorms are taken out and its SiLU is a relu, which its
    settings cannot say; its replay keeps the next states too; settings of the task otherwise, no torch.compile.
    """

    package = "lerobot"
    modules = ("lerobot", "draccus", "accelerate", "einops")
    compiled = False

    def __init__(self) -> None:
        import torch

        sac = lerobot_module("lerobot.policies.sac.modeling_sac")
        types = lerobot_module("lerobot.configs.types")
        buffers = lerobot_module("lerobot.rl.buffer")
        torch.manual_seed(0)
        config = sac.SACConfig(
            input_features={STATE: types.PolicyFeature(types.FeatureType.STATE, (task.STATE,))},
            output_features={"action": types.PolicyFeature(types.FeatureType.ACTION, (task.ACTION,))},
            latent_dim=task.STATE, num_critics=task.CRITICS, discount=task.DISCOUNT, target_entropy=task.TARGET_ENTROPY,
            critic_target_update_weight=task.TAU, use_torch_compile=False, device="cpu", storage_device="cpu",
        )  # fmt: skip
        self.policy = policy = sac.SACPolicy(config)
        policy.encoder_critic.state_encoder = torch.nn.Identity()
        for mlp in [policy.actor.network, *(c.net for ensemble in self._ensembles() for c in ensemble.critics)]:
            mlp.net = _plain(mlp.net)
        policy.train()
        if self.compiled:
            policy.critic_ensemble = torch.compile(policy.critic_ensemble)
            policy.critic_target = torch.compile(policy.critic_target)
        self.buffer = buffers.ReplayBuffer(
            task.CAPACITY, "cpu", state_keys=[STATE], use_drq=False, storage_device="cpu"
        )
        trained = {
            "critic": list(policy.critic_ensemble.parameters()),
            "actor": [p for name, p in policy.actor.named_parameters() if not name.startswith("encoder")],
            "temperature": [policy.log_alpha],
        }
        self.trained = trained
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=task.LEARNING_RATE) for name, parameters in trained.items()
        }
        self.clip = config.grad_clip_norm
        self.batches, self.said = None, {}

    def fill(self, rows):
        import torch

        buffer, columns = self.buffer, {name: torch.from_numpy(value) for name, value in rows._asdict().items()}
        seen, following = ({STATE: columns[name][:1]} for name in ("observations", "next_observations"))
        buffer.add(seen, columns["actions"][:1], 0.0, following, False, False)  # allocates its tensors
        buffer.states[STATE][:], buffer.next_states[STATE][:] = columns["observations"], columns["next_observations"]
        buffer.actions[:], buffer.rewards[:] = columns["actions"], columns["rewards"]
        buffer.dones[:], buffer.truncateds[:] = columns["terminated"], columns["ends"] & ~columns["terminated"]
        buffer.position, buffer.size = 0, task.CAPACITY
        self.batches = self.buffer.get_iterator(batch_size=task.BATCH, async_prefetch=False)

    def load(self, weights):
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters().items():
                stem, _, member = name.partition("@")
                value = weights[stem][int(member)] if member else weights[stem]
                parameter.copy_(torch.from_numpy(value.T.copy()))
            self.policy.log_alpha.fill_(float(weights["log_temperature"]))

    def weights(self):
        found = {name: parameter.detach().numpy().T.copy() for name, parameter in self._parameters().items()}
        for stem in [name.removesuffix("@0") for name in found if name.endswith("@0")]:
            found[stem] = np.stack([found.pop(f"{stem}@{member}") for member in range(task.CRITICS)])
        return found | {"log_temperature": self.policy.log_alpha.detach().numpy().copy().reshape(())}

    def call(self):
        import torch

        batch = next(self.batches)
        for part in (batch["state"], batch["next_state"], {"action": batch["action"]}):  # its check for NaN
            for tensor in part.values():
                if torch.isnan(tensor).any():
                    raise ValueError("a batch holds NaN")
        forward = {**batch, "observation_feature": None, "next_observation_feature": None}
        for name, parameters in self.trained.items():
            loss = self.policy.forward(forward, model=name)[f"loss_{name}"]
            self.optimizers[name].zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm=self.clip).item()
            self.optimizers[name].step()
            self.said |= {name: loss.item(), f"{name} norm": norm}
        self.said["alpha"] = self.policy.temperature
        self.policy.update_target_networks()

    def critic_loss(self):
        return self.said["critic"] / task.CRITICS  # the sum over the critics

    def gflop(self):
        return None if self.compiled else torch_gflop(self)

    def _ensembles(self):
        ensembles = (self.policy.critic_ensemble, self.policy.critic_target)
        return [getattr(ensemble, "_orig_mod", ensemble) for ensemble in ensembles]

    def _parameters(self):
        """Parameters by name; "@e" is member e of the critics."""
        actor = self.policy.actor
        layers = {f"actor/{n}": actor.network.net[2 * n] for n in range(len(task.WIDTHS))}
        found = {
            f"{name}/{part}": getattr(layer, part)
            for name, layer in (layers | {"actor/mean": actor.mean_layer, "actor/log_std": actor.std_layer}).items()
            for part in ("weight", "bias")
        }
        for name, ensemble in zip(("critic", "target_critic"), self._ensembles(), strict=True):
            for member, head in enumerate(ensemble.critics):
                for n, layer in enumerate([*(head.net.net[2 * n] for n in range(len(task.WIDTHS))), head.output_layer]):
                    for part in ("weight", "bias"):
                        found[f"{name}/{n}/{part}@{member}"] = getattr(layer, part)
        return found


class LeRobotCompiled(LeRobot):
    """LeRobot, compiled: as LeRobot, with its use_torch_compile, which compiles both ensembles of critics."""

    compiled = True


STATE = "observation.state"


def _plain(layers):
    from torch import nn

    kept = [layer for layer in layers if not isinstance(layer, nn.LayerNorm)]
    return nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.SiLU) else layer for layer in kept))
