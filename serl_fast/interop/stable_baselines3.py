"""The replay store as Stable-Baselines3's replay buffer: ``SAC(..., replay_buffer_class=FastReplayBuffer)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples

from serl_fast.replay import Mixture, ReplayStore, Schema


class FastReplayBuffer(ReplayBuffer):
    """Stable-Baselines3's ``ReplayBuffer`` and ``DictReplayBuffer`` on the store: each observation is kept once.

    Time-outs (``TimeLimit.truncated``) never end the value, and the observation after one is the episode's last, so
    ``optimize_memory_usage`` is neither needed nor accepted. One store per environment keeps the episodes apart.
    Sampling is reproducible by ``seed``, not by NumPy's global state.

    Args:
        buffer_size: transitions in all.
        observation_space: Box, Discrete, … or a Dict of such.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        device: where the samples go.
        n_envs: environments that step together.
        optimize_memory_usage: must be False.
        handle_timeout_termination: False counts time-outs as terminations, as Stable-Baselines3 does then.
        n_steps: length of the returns; above 1 samples have ``discounts``.
        gamma: discount of those returns.
        seed: of the sampling.

    Source: the interface of ``stable_baselines3.common.buffers``, 2.x.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        # Not ReplayBuffer's own constructor: it would reserve the memory that the stores replace.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is not needed: observations are stored once; leave it False")
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        dtype: Any = np.float32 if isinstance(action_space, spaces.Box) else np.int64
        action = spaces.Box(-1, 1, (self.action_dim,), dtype)  # the bounds are not looked at
        self.gamma = gamma
        self.seed = seed
        self._schema = Schema.from_space(_boxes(observation_space, self.obs_shape), action)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.stores = [ReplayStore(self._schema, self.buffer_size, self.seed + n) for n in range(self.n_envs)]
        samplers = [store.sampler(self.gamma, n_step=self.n_steps) for store in self.stores]
        self._source = Mixture(samplers, [1.0] * self.n_envs)
        self.pos, self.full = 0, False

    def add(
        self, obs: Any, next_obs: Any, action: np.ndarray, reward: np.ndarray, done: np.ndarray, infos: list[Any]
    ) -> None:
        """Store one step of every environment; see ``ReplayBuffer.add``."""
        actions = action.reshape(self.n_envs, self.action_dim)
        obs, next_obs = (self._columns(each) for each in (obs, next_obs))
        for number, store in enumerate(self.stores):
            late = self.handle_timeout_termination and bool(infos[number].get("TimeLimit.truncated", False))
            over = bool(done[number])
            store.append(
                {
                    "observations": _pick(obs, number),
                    "next_observations": _pick(next_obs, number),
                    "actions": actions[number],
                    "rewards": float(reward[number]),
                    "terminated": over and not late,
                    "truncated": over and late,
                }
            )
        self.pos = self.stores[0].appended % self.buffer_size
        self.full = len(self.stores[0]) == self.buffer_size

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draw a batch of fresh tensors; see ``ReplayBuffer.sample``."""
        if self.n_steps > 1 and env is not None and env.norm_reward:
            raise ValueError(
                "n_steps > 1 needs VecNormalize(norm_reward=False): each reward is to be normalised, not their sum"
            )
        batch = self._source.sample(batch_size)
        kind = DictReplayBufferSamples if isinstance(self.observation_space, spaces.Dict) else ReplayBufferSamples
        tensors = {
            "observations": self._tensors(self._normalize_obs(batch["observations"], env)),
            "actions": self._tensors(batch["actions"]),
            "next_observations": self._tensors(self._normalize_obs(batch["next_observations"], env)),
            "dones": self._tensors(batch["terminated"].astype(np.float32).reshape(-1, 1)),
            "rewards": self._tensors(self._normalize_reward(batch["rewards"].reshape(-1, 1), env)),
        }
        if self.n_steps > 1:
            # γ^n of the steps that the return has; where it ended in a termination `dones` hides it.
            discounts = np.where(batch["terminated"], 1.0, batch["discounts"]).astype(np.float32)
            tensors["discounts"] = self._tensors(discounts.reshape(-1, 1))
        return kind(**tensors)

    def __getstate__(self) -> dict[str, Any]:
        """For ``save_replay_buffer``: the contents of the stores as arrays."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("stores", "_source")}
        return {**state, "stores": [store.state_dict() for store in self.stores]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo ``__getstate__``."""
        contents = state.pop("stores")
        self.__dict__.update(state)
        place = (self.pos, self.full)
        self.reset()
        self.pos, self.full = place
        for store, arrays in zip(self.stores, contents, strict=True):
            store.load_state_dict(arrays)

    def _columns(self, obs: Any) -> Any:
        """Observations of all environments in the stored shapes: a Discrete one comes without its last axis."""
        if isinstance(self.obs_shape, dict):
            return {key: obs[key].reshape(self.n_envs, *shape) for key, shape in self.obs_shape.items()}
        return obs.reshape(self.n_envs, *self.obs_shape)

    def _tensors(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self._tensors(value) for key, value in tree.items()}
        return torch.from_numpy(tree).to(self.device)


def _boxes(space: spaces.Space[Any], shape: Any) -> spaces.Space[Any]:
    """The arrays that Stable-Baselines3 makes of a space: those of its ``get_obs_shape``."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _boxes(child, shape[key]) for key, child in space.spaces.items()})
    dtype: Any = space.dtype if isinstance(space, spaces.Box) else np.int64
    return spaces.Box(0, 1, shape, dtype)  # the bounds are not looked at


def _pick(tree: Any, number: int) -> Any:
    if isinstance(tree, dict):
        return {key: _pick(value, number) for key, value in tree.items()}
    return tree[number]
