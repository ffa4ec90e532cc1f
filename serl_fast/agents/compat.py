"""HIL-SERL's own update, to the last digit: what ``SACConfig(compat="hil_serl")`` switches on.

Beside the objectives of this file:

* the critics share their last layer (``CriticEnsemble(shared_head=True)``);
* ``Agent.optimize`` is "objectives": every loss at the same old parameters; each of critic, grasp critic, actor and
  temperature has an Adam of its own over all that its loss reaches, and their steps add up; an Adam whose loss was not
  asked for steps with a zero gradient, so that its momentum keeps moving the parameters;
* the entropy bonus of the backup is neither discounted nor masked (``sac.critic_targets``);
* a subset of critics is drawn with replacement (``parts.critic_subset``);
* the target entropy of a hybrid agent counts the grippers: -(full action dimension) / 2;
* the target average covers every network, also the policy and the temperature, whose averages nothing reads.

Time-outs stay what the data says: the original's environments mark them as terminal.

Source: ``serl_launcher/agents/continuous/sac.py``, ``sac_hybrid_single.py`` and ``common/common.py`` of HIL-SERL.
"""

from __future__ import annotations

from torch import nn

from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Batch, Loss, Noise, Objective


def actor_objective() -> Objective:
    """-mean( mean_e Q_e(s, a) - temperature * log pi(a|s) ), a ~ pi(.|s), critics and temperature constant.

    The gradient reaches the policy and the proprioception branch of the shared encoder, not its camera heads.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        observations = batch["observations"]
        features = networks["encoder"](observations, noise.get("dropout"), detach_images=True)
        actions, log_probs = networks["actor"](features).sample(noise["actions"])
        q = networks["critic"](networks["encoder"](observations).detach(), actions).mean(0)  # [B]
        temperature = networks["temperature"]().detach()
        value = (temperature * log_probs - q).mean()
        metrics = {"loss": value.detach(), "entropy": -log_probs.detach().mean(), "temperature": temperature}
        return Loss(value, metrics)

    return Objective("actor", loss, trains=("encoder", "actor"))


def temperature_objective(config: SACConfig, action_dim: int) -> Objective:
    """temperature * (H - target entropy), H = -mean log pi(a'|s') of a sample of its own at the next observations.

    Args:
        config: hyper-parameters; its target entropy None means -action_dim / 2.
        action_dim: width of the full action, grippers included.
    """
    target_entropy = -action_dim / 2 if config.target_entropy is None else config.target_entropy

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        features = networks["encoder"](batch["next_observations"], noise.get("temperature_dropout"))
        _, log_probs = networks["actor"](features).sample(noise["temperature_actions"])
        entropy = -log_probs.mean().detach()
        value = networks["temperature"]() * (entropy - target_entropy)
        return Loss(value, {"loss": value.detach(), "entropy": entropy})

    return Objective("temperature", loss, trains=("temperature",))
