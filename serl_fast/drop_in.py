"""Objects for people who drive training themselves: an agent and its engine behind three methods.

from serl_fast.agents.sac import SACHybridAgent

agent = SACHybridAgent(image_keys=["image"], continuous_action_dim=6, grasp_action_dim=3, device="cuda")
agent.load(torch.load("final_model.pth"))
action = agent.sample_actions(observation)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serl_fast.agents.build import from_settings
from serl_fast.agents.hybrid_sac import ARM_DIM, CHOICES, hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import UNSIZED_ENCODERS, SACConfig
from serl_fast.core import Agent, Batch
from serl_fast.data.batches import to_tensors
from serl_fast.engine import Engine, EngineConfig
from serl_fast.interop.policies import load_weights
from serl_fast.logging import metric_aliases


class _DropIn:
    """What the two constructors share."""

    def __init__(self, agent: Agent, device: str | torch.device | None, discount: float, execution: str) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.discount = discount
        self._config = EngineConfig(execution)  # type: ignore[arg-type]
        self.engine = Engine(agent, self._config, device=device)

    @property
    def agent(self) -> Agent:
        """The agent as a value: its networks and losses."""
        return self.engine.agent

    @property
    def state(self) -> SimpleNamespace:
        """``state.models`` are the networks by name; a name may be set to a module that wraps the one there."""
        return SimpleNamespace(models=self.agent.networks)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the weights of a checkpoint of ``train_hybrid``, as ``torch.load`` returns it.

        A policy file works too: ``serl_fast.interop.policies.read_policy`` reads it.

        Raises:
            ValueError: the checkpoint is of another agent: other cameras or another action.
        """
        if "agent" not in checkpoint or "networks" not in checkpoint:
            raise ValueError(f"not a checkpoint of train_hybrid: it holds {sorted(checkpoint)}")
        saved, mine = checkpoint["agent"], self.agent.settings
        for key in ("algorithm", "image_keys", "action_dim", "grippers"):
            if saved.get(key) != mine.get(key):
                raise ValueError(f"the checkpoint's {key} is {saved.get(key)}; this agent's is {mine.get(key)}")
        agent = self.agent if saved == mine else from_settings(saved)
        load_weights(agent.networks, checkpoint["networks"])
        if agent is not self.agent:  # sizes that the constructor does not ask for, such as the state's
            self.engine = Engine(agent, self._config, device=self.engine.device)
        if "engine" in checkpoint:
            self.engine.load_state_dict(checkpoint["engine"])

    def sample_actions(self, observations: Any, argmax: bool = False) -> np.ndarray:
        """Actions for one observation (no batch axis) or a batch of them.

        Args:
            observations: ``state`` float [P] and cameras uint8 [H, W, C], with T stacked frames [T, P / T] or [P] and
                [T, H, W, C], all perhaps with a batch axis in front; the state alone may come without the dict. What
                can be one observation with T = 1 or a batch of one, is a batch.
            argmax: the mode instead of a sample.

        Returns:
            float32 [A], or [B, A] for a batch.

        Raises:
            ValueError: an observation is missing, or the shapes are those of neither one observation nor a batch.
        """
        named = self._observations(observations, "observations")
        arrays = {key: np.asarray(value) for key, value in named.items()}
        single = self._is_single(arrays)
        if single:
            arrays = {key: array[None] for key, array in arrays.items()}
        tensors = to_tensors(
            {k: a if a.dtype == np.uint8 else a.astype(np.float32) for k, a in arrays.items()},
            self.engine.device,
        )
        actions: np.ndarray = self.engine.act(tensors, deterministic=argmax).cpu().numpy()
        return actions[0] if single else actions

    def update(self, batch: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """One gradient step of every network on a batch of arrays or tensors.

        Args:
            batch: ``observations``, ``actions``, ``next_observations``, ``rewards``, ``masks`` (1 - terminated), and
                optionally ``grasp_penalty``.

        Returns:
            The agent itself and its metrics (``critic_loss``, ``actor_loss``, ``alpha`` and the rest).

        Raises:
            ValueError: an entry of the batch, or an observation in it, is missing.
        """
        metrics = self.engine.update(self._tensors(batch))
        return self, metric_aliases({name: float(value) for name, value in metrics.items()})

    def critic_loss_fn(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The critics' loss on a batch as in :meth:`update`, with its gradient graph, and its metrics.

        For a training loop with an optimizer of its own; :meth:`update` does all of it.
        """
        tensors, networks = self._tensors(batch), self.agent.networks
        noise = self.agent.draw_noise(self.engine.generator, len(tensors["rewards"]), self.engine.device)
        with torch.no_grad():
            tensors = self.agent.prepare(networks, tensors, noise)
        (critic,) = [objective for objective in self.agent.objectives if objective.name == "critic"]
        loss = critic.loss(networks, tensors, noise)
        return loss.value, {name: float(value) for name, value in loss.metrics.items()}

    def _observation_keys(self) -> list[str]:
        state = ["state"] if self.agent.settings["state_dim"] else []
        return [*state, *self.agent.settings["image_keys"]]

    def _observations(self, given: Any, what: str) -> dict[str, Any]:
        """Those observations that the agent reads, by name."""
        named, keys = _by_name(given), self._observation_keys()
        _check_complete(named, keys, what)
        return {key: named[key] for key in keys}

    def _is_single(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether these are one observation, not a batch; by the number of axes, and of frames."""
        config, cameras = self.agent.settings["config"], self.agent.settings["image_keys"]
        frames, width = config["frames"], self.agent.settings["state_dim"]
        single = batch = True
        for key, array in arrays.items():
            shape = array.shape
            if key in cameras:
                one = (len(shape) == 3 and frames == 1) or (len(shape) == 4 and shape[0] == frames)
                many = (len(shape) == 4 and frames == 1) or (len(shape) == 5 and shape[1] == frames)
            else:
                one = len(shape) in (1, 2) and array.size == width
                many = len(shape) in (2, 3) and math.prod(shape[1:]) == width
            single, batch = single and one, batch and many
        if single or batch:
            return not batch
        stacked = f"{frames} frames each, [{frames}, H, W, C]" if frames > 1 else "[H, W, C]"
        accepted = [f"state [{width}]"] if width else []
        accepted += [f"cameras {stacked}"] if cameras else []
        raise ValueError(
            f"the observations have shapes { {key: array.shape for key, array in arrays.items()} }; accepted: "
            f"{', '.join(accepted)}, or all with a batch axis in front"
        )

    def _tensors(self, batch: Mapping[str, Any]) -> Batch:
        _check_complete(batch, ("observations", "actions", "next_observations", "rewards", "masks"), "the batch")

        def images(value: Any) -> Tensor:
            return torch.as_tensor(value, device=self.engine.device)

        def floats(value: Any) -> Tensor:
            return images(value).float()

        cameras, tensors = self.agent.settings["image_keys"], Batch()
        for key in ("observations", "next_observations"):
            tensors[key] = {
                name: (images if name in cameras else floats)(value)
                for name, value in self._observations(batch[key], key).items()
            }
        tensors["actions"], tensors["rewards"] = floats(batch["actions"]), floats(batch["rewards"])
        tensors["discounts"] = self.discount * floats(batch["masks"])
        tensors["grasp_penalty"] = floats(batch.get("grasp_penalty", np.zeros(len(tensors["rewards"]))))
        return tensors


def _by_name(observations: Any) -> Mapping[str, Any]:
    """Observations as a dict: an array alone is the state."""
    return observations if isinstance(observations, Mapping) else {"state": observations}


def _check_complete(given: Mapping[str, Any], needed: Sequence[str], what: str) -> None:
    missing = [key for key in needed if key not in given]
    if missing:
        raise ValueError(f"{what}: {', '.join(missing)} missing; given are {', '.join(map(str, given)) or 'none'}")


# Keyword arguments of the original's constructors, and their names here; those that can only be True.
_NETWORK_TRUE, _POLICY_TRUE = "activate_final", "tanh_squash_distribution"
_NETWORK_NAMES = {"hidden_dims": "hidden_widths", "activations": "activation", "use_layer_norm": "layer_norm"}
_POLICY_NAMES = {name: name for name in ("std_parameterization", "std_min", "std_max", "fixed_std")}
_AGENT_NAMES = {
    "temperature_init": "initial_temperature",
    "soft_target_update_rate": "target_update_rate",
    "encoder_type": "encoder",
    "lr": "learning_rate",
}


def _config(
    critic_network_kwargs: Mapping[str, Any],
    policy_network_kwargs: Mapping[str, Any],
    policy_kwargs: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> SACConfig:
    """SACConfig from the original's keyword arguments.

    Raises:
        ValueError: an argument that is not known, comes twice or can not be had, or critics and policy that differ.
    """
    critic = _renamed("critic_network_kwargs", critic_network_kwargs, _NETWORK_NAMES, _NETWORK_TRUE)
    policy = _renamed("policy_network_kwargs", policy_network_kwargs, _NETWORK_NAMES, _NETWORK_TRUE)
    if policy and critic and policy != critic:
        raise ValueError(
            f"critic_network_kwargs {dict(critic_network_kwargs)} and policy_network_kwargs "
            f"{dict(policy_network_kwargs)} differ; critics and policy share one shape here"
        )
    values = (policy or critic) | _renamed("policy_kwargs", policy_kwargs, _POLICY_NAMES, _POLICY_TRUE)
    for key, value in settings.items():
        name = _AGENT_NAMES.get(key, key)
        if name in values:
            raise ValueError(f"{name} is given twice, the second time as {key}")
        values[name] = value
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return SACConfig(**values)
    except TypeError as error:
        raise ValueError(f"{error}; see serl_fast.agents.sac_config.SACConfig for what there is") from error


def _renamed(argument: str, given: Mapping[str, Any], names: Mapping[str, str], only_true: str) -> dict[str, Any]:
    """The entries of one of the original's keyword arguments under their names here."""
    unknown = set(given) - set(names) - {only_true}
    if unknown:
        raise ValueError(
            f"{argument}: {sorted(unknown)} are not known; accepted: {sorted(names)}, and {only_true}=True"
        )
    if not given.get(only_true, True):
        raise ValueError(f"{argument}: {only_true} is {given[only_true]}; only True is to be had here")
    return {names[key]: value for key, value in given.items() if key in names}


class SACAgent(_DropIn):
    """SAC for arms whose grippers are fixed.

    Args:
        image_keys: cameras.
        action_dim: action dimensions, 6 where neither this nor ``continuous_action_dim``, which is the same, is given.
        continuous_action_dim: see ``action_dim``.
        state_dim: width of ``observations["state"]``; 0 for none.
        device: by default CUDA where there is one.
        discount: gamma.
        execution: "eager" or "compiled".
        settings: see :meth:`create_states`.

    Raises:
        ValueError: a setting that is not known or out of range.
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        action_dim: int | None = None,
        *,
        continuous_action_dim: int | None = None,
        state_dim: int = 0,
        device: str | torch.device | None = None,
        discount: float = 0.95,
        execution: str = "eager",
        **settings: Any,
    ) -> None:
        width = action_dim if action_dim is not None else continuous_action_dim
        agent = sac(state_dim, 6 if width is None else width, image_keys, _config({}, {}, {}, settings))
        super().__init__(agent, device, discount, execution)

    @classmethod
    def create_states(
        cls,
        observations: Any,
        actions: Any,
        *,
        critic_network_kwargs: Mapping[str, Any] | None = None,
        policy_network_kwargs: Mapping[str, Any] | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        discount: float = 0.95,
        execution: str = "eager",
        **settings: Any,
    ) -> SACAgent:
        """SAC from states, sized by example.

        Args:
            observations: one example or a batch: the state [..., P], or a dict with ``state``.
            actions: one example or a batch, [..., A].
            critic_network_kwargs: ``hidden_dims``, ``activations``, ``use_layer_norm`` of critics and policy;
                ``activate_final`` can only be True.
            policy_network_kwargs: the same, or absent.
            policy_kwargs: ``std_parameterization``, ``std_min``, ``std_max``, ``fixed_std``;
                ``tanh_squash_distribution`` can only be True.
            device: by default CUDA where there is one.
            discount: gamma.
            execution: "eager" or "compiled".
            settings: other fields of ``SACConfig``, such as ``compat``; ``temperature_init``,
                ``soft_target_update_rate``, ``encoder_type`` and ``lr`` (Adam's learning rate) work.

        Raises:
            ValueError: an argument that is not known, or no ``state``.
        """
        named = _by_name(observations)
        _check_complete(named, ("state",), "observations")
        return cls.create_pixels(
            {"state": named["state"]},
            actions,
            image_keys=(),
            critic_network_kwargs=critic_network_kwargs,
            policy_network_kwargs=policy_network_kwargs,
            policy_kwargs=policy_kwargs,
            device=device,
            discount=discount,
            execution=execution,
            **({"proprioception_dim": None} | settings),  # alone, the state is the whole observation
        )

    @classmethod
    def create_pixels(
        cls,
        observations: Mapping[str, Any],
        actions: Any,
        *,
        image_keys: Sequence[str] = ("image",),
        critic_network_kwargs: Mapping[str, Any] | None = None,
        policy_network_kwargs: Mapping[str, Any] | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        discount: float = 0.95,
        execution: str = "eager",
        **settings: Any,
    ) -> SACAgent:
        """SAC from cameras and, where the example has one, the state.

        Args:
            observations: one example or a batch: cameras [..., H, W, C] and perhaps ``state`` [..., P].
            actions: see :meth:`create_states`, like all that follow.
            image_keys: which of the observations are cameras.
            critic_network_kwargs: of critics and policy.
            policy_network_kwargs: the same, or absent.
            policy_kwargs: of the policy's standard deviation.
            device: where it runs.
            discount: gamma.
            execution: "eager" or "compiled".
            settings: also ``encoder_type``: "resnet-pretrained", "resnet", "small" and so on.

        Raises:
            ValueError: an argument that is not known, or a camera that is not in the example.
        """
        config = _config(critic_network_kwargs or {}, policy_network_kwargs or {}, policy_kwargs or {}, settings)
        missing = set(image_keys) - set(observations)
        if missing:
            raise ValueError(f"cameras {sorted(missing)} are not in the example, which holds {sorted(observations)}")
        if image_keys and "image_size" not in settings and config.encoder in UNSIZED_ENCODERS:
            height, width, _ = np.shape(observations[image_keys[0]])[-3:]
            config = dataclasses.replace(config, image_size=(height, width))
        agent = cls.__new__(cls)
        state_dim = np.shape(observations["state"])[-1] if "state" in observations else 0
        value = sac(state_dim, np.shape(actions)[-1], image_keys, config)
        _DropIn.__init__(agent, value, device, discount, execution)
        return agent


class SACHybridAgent(_DropIn):
    """SAC for the arms, double DQN for their learned grippers.

    Args:
        image_keys: cameras.
        continuous_action_dim: 6 for one arm, 12 for two.
        grasp_action_dim: 3 choices for one gripper, 9 for two.
        state_dim: width of ``observations["state"]``; 0 for none.
        device: by default CUDA where there is one.
        discount: gamma.
        execution: "eager" or "compiled".
        settings: see :meth:`SACAgent.create_states`.

    Raises:
        ValueError: the two dimensions belong to different numbers of arms, or a setting that is not known or out of
            range.
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        continuous_action_dim: int = 6,
        grasp_action_dim: int = 3,
        *,
        state_dim: int = 0,
        device: str | torch.device | None = None,
        discount: float = 0.95,
        execution: str = "eager",
        **settings: Any,
    ) -> None:
        grippers = continuous_action_dim // ARM_DIM
        if continuous_action_dim != ARM_DIM * grippers or grasp_action_dim != CHOICES**grippers or not grippers:
            raise ValueError(
                f"continuous_action_dim {continuous_action_dim} with grasp_action_dim {grasp_action_dim}; "
                "accepted: 6 with 3 (one arm), 12 with 9 (two arms)"
            )
        agent = hybrid_sac(state_dim, grippers, image_keys, _config({}, {}, {}, settings))
        super().__init__(agent, device, discount, execution)
