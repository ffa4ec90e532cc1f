"""The one update that every package computes: sizes, settings, data, weights, and its result in plain NumPy.

NumPy and the standard library only: the packages' own interpreters import this.

SAC with a learned temperature, as Stable-Baselines3, TorchRL and SBX have it by default: one call draws a batch from a
replay of 100 000 transitions and updates critics, actor, temperature and targets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

STATE, ACTION, WIDTHS, CRITICS, BATCH = 32, 7, (256, 256), 2, 256
DISCOUNT, TAU, LEARNING_RATE, EPSILON = 0.99, 0.005, 3e-4, 1e-8
TARGET_ENTROPY = -float(ACTION)
CAPACITY = 100_000
EPISODE = 100  # steps
Arrays = dict[str, np.ndarray]


class Transitions(NamedTuple):
    """Rows [N, ...], float32; ``ends`` marks the last row of an episode, which is a time-out where not terminated."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    ends: np.ndarray


def transitions(count: int = CAPACITY, seed: int = 0) -> Transitions:
    """Random episodes; a tenth of them terminates."""
    random = np.random.default_rng(seed)
    episodes = -(-count // EPISODE)
    seen = random.standard_normal((episodes, EPISODE + 1, STATE), np.float32)
    ends = np.tile(np.arange(EPISODE) == EPISODE - 1, episodes)[:count]
    return Transitions(
        seen[:, :-1].reshape(-1, STATE)[:count].copy(),
        random.uniform(-1, 1, (count, ACTION)).astype(np.float32),
        random.standard_normal(count, np.float32),
        seen[:, 1:].reshape(-1, STATE)[:count].copy(),
        ends & (random.random(count) < 0.1),
        ends,
    )


def one_transition(count: int = CAPACITY) -> Transitions:
    """The same transition everywhere: whatever is drawn, every package sees the same batch.

    Its reward is so large that the critics are pulled the same way by many updates.
    """
    random = np.random.default_rng(7)
    seen, action, following = (
        random.standard_normal(STATE),
        random.uniform(-1, 1, ACTION),
        random.standard_normal(STATE),
    )

    def repeated(values: np.ndarray | float) -> np.ndarray:
        return np.repeat(np.asarray(values, np.float32)[None], count, 0)

    no, yes = np.zeros(count, bool), np.ones(count, bool)
    return Transitions(repeated(seen), repeated(action), repeated(30.0), repeated(following), no, yes)


def weights(seed: int = 0) -> Arrays:
    """Weights under common names: dense layers [inputs, outputs], those of the critics with a leading axis [E].

    The policy is all but deterministic (std exp(-9)) and the temperature all but zero, so that one update does not
    depend on the random numbers, which every package draws in its own way. The last layer of the critics is shifted
    so that their minimum, the discount and the targets all count in the loss.
    """
    random = np.random.default_rng(seed)

    def dense(name: str, inputs: int, outputs: int, members: tuple[int, ...] = ()) -> Arrays:
        bound = inputs**-0.5
        weight = random.uniform(-bound, bound, (*members, inputs, outputs)).astype(np.float32)
        return {f"{name}/weight": weight, f"{name}/bias": np.zeros((*members, outputs), np.float32)}

    result: Arrays = {}
    for layer, (inputs, outputs) in enumerate(pairwise((STATE, *WIDTHS))):
        result |= dense(f"actor/{layer}", inputs, outputs)
    result |= dense("actor/mean", WIDTHS[-1], ACTION) | dense("actor/log_std", WIDTHS[-1], ACTION)
    result["actor/log_std/weight"] *= 0
    result["actor/log_std/bias"] += -9
    for layer, (inputs, outputs) in enumerate(pairwise((STATE + ACTION, *WIDTHS, 1))):
        result |= dense(f"critic/{layer}", inputs, outputs, (CRITICS,))
    result[f"critic/{len(WIDTHS)}/bias"] += np.arange(5.0, 5.0 + 2 * CRITICS, 2.0, dtype=np.float32)[:, None]
    result |= {f"target_{name}": value.copy() for name, value in result.items() if name.startswith("critic")}
    return result | {"log_temperature": np.full((), -14.0, np.float32)}


def trained(name: str) -> bool:
    """Whether a name of :func:`weights` is trained: targets are averaged instead."""
    return not name.startswith("target_")


def parameters(arrays: Arrays) -> int:
    """Numbers that are trained."""
    return sum(value.size for name, value in arrays.items() if trained(name))


class Expected(NamedTuple):
    """What one update on :func:`one_transition` gives: mean squared error over members and batch, new critics."""

    critic_loss: float
    critics: Arrays


def expected(before: Arrays) -> Expected:
    """The critics' update in float64: forward, backward and Adam's first step, whose size is the learning rate."""
    row = one_transition(1)
    w = {name: value.astype(np.float64) for name, value in before.items()}
    action = np.tanh(_mlp(w, "actor", row.next_observations, ("0", "1", "mean"))[-1])
    target_rows = np.concatenate([row.next_observations, action], 1)
    names = [str(layer) for layer in range(len(WIDTHS) + 1)]
    value = _mlp(w, "target_critic", target_rows, names)[-1].min(0)
    target = row.rewards[:, None] + DISCOUNT * value  # [1, 1]
    inputs = np.concatenate([row.observations, row.actions], 1)
    layers = [np.broadcast_to(inputs, (CRITICS, *inputs.shape)), *_mlp(w, "critic", inputs, names)]
    error = layers[-1] - target  # [E, 1, 1]
    slope, new = error, {}  # the scale of the loss is nothing to Adam
    for layer in reversed(range(len(names))):
        gradients = {"weight": np.swapaxes(layers[layer], -1, -2) @ slope, "bias": slope.sum(-2)}
        slope = (slope @ np.swapaxes(w[f"critic/{layer}/weight"], -1, -2)) * (layers[layer] > 0)
        for part, gradient in gradients.items():
            name = f"critic/{layer}/{part}"
            new[name] = w[name] - LEARNING_RATE * gradient / (np.abs(gradient) + EPSILON)
    return Expected(float(np.square(error).mean()), new)


def _mlp(
    w: dict[str, np.ndarray], network: str, x: np.ndarray, layers: list[str] | tuple[str, ...]
) -> list[np.ndarray]:
    """Outputs of every layer, relu in between."""
    outputs = []
    for layer in layers:
        bias = w[f"{network}/{layer}/bias"]
        x = x @ w[f"{network}/{layer}/weight"] + (bias if bias.ndim == 1 else bias[:, None])
        outputs.append(x if layer == layers[-1] else np.maximum(x, 0))
        x = outputs[-1]
    return outputs
