"""SAC in plain JAX, as short and as fast as it is written by hand: one jitted update, or 20 of them in one scan.

Critics are stacked [E, in, out], so that both are one batched product; gradients by ``jax.value_and_grad``, Adam and
the averages in the same program, the whole state donated. Batches are drawn with NumPy.
"""

from __future__ import annotations

import numpy as np

from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner


class PlainJax(Learner):
    """Plain JAX: one jitted update written by hand, critics stacked, the state donated, batches drawn by NumPy."""

    modules = ("jax",)
    package = "jax"

    def __init__(self) -> None:
        import jax

        self.jax, self.random = jax, np.random.default_rng(0)
        self.step = jax.jit(_updates(jax), donate_argnums=0)
        self.losses = None

    def fill(self, rows):
        discounts = (task.DISCOUNT * ~rows.terminated).astype(np.float32)
        self.columns = (rows.observations, rows.actions, rows.rewards, rows.next_observations, discounts)

    def load(self, weights):
        jnp = self.jax.numpy
        split = {"actor": "actor/", "critic": "critic/", "target": "target_critic/", "log_temperature": "log_temp"}
        parts = {
            part: {name: jnp.array(value) for name, value in weights.items() if name.startswith(prefix)}
            for part, prefix in split.items()
        }
        parts["target"] = {name.removeprefix("target_"): value for name, value in parts["target"].items()}
        zeros = {
            part: self.jax.tree.map(jnp.zeros_like, parts[part]) for part in ("actor", "critic", "log_temperature")
        }
        self.state = {
            "parts": parts,
            "first": zeros,
            "second": self.jax.tree.map(jnp.zeros_like, zeros),
            "steps": jnp.zeros((), jnp.int32),
            "key": self.jax.random.PRNGKey(0),
        }

    def weights(self):
        parts = {part: dict(values) for part, values in self.state["parts"].items()}
        parts["target"] = {f"target_{name}": value for name, value in parts["target"].items()}
        return {name: np.array(value) for part in parts.values() for name, value in part.items()}

    def call(self):
        rows = self.random.integers(task.CAPACITY, size=self.updates * task.BATCH)
        batches = tuple(column[rows].reshape(self.updates, task.BATCH, *column.shape[1:]) for column in self.columns)
        self.state, self.losses = self.step(self.state, batches)
        self.jax.block_until_ready(self.state)

    def critic_loss(self):
        return float(self.losses[-1])

    def gflop(self):
        batches = tuple(np.zeros((1, task.BATCH, *column.shape[1:]), np.float32) for column in self.columns)
        return self.jax.jit(_updates(self.jax)).lower(self.state, batches).cost_analysis()["flops"] / 1e9


class PlainJaxScan(PlainJax):
    """Plain JAX, 20 updates a call: 20 of them in one scan."""

    updates = 20


def _updates(jax):
    jnp = jax.numpy

    def mlp(weights, network, x, layers):
        for layer in layers:
            bias = weights[f"{network}/{layer}/bias"]
            x = x @ weights[f"{network}/{layer}/weight"] + (bias if bias.ndim == 1 else bias[:, None])
            x = x if layer == layers[-1] else jax.nn.relu(x)
        return x

    def policy(weights, observations, noise):
        hidden = jax.nn.relu(mlp(weights, "actor", observations, tuple(range(len(task.WIDTHS)))))
        log_std = jnp.clip(mlp(weights, "actor", hidden, ("log_std",)), -20, 2)
        u = mlp(weights, "actor", hidden, ("mean",)) + jnp.exp(log_std) * noise
        slope = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
        return jnp.tanh(u), (-0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - slope).sum(-1)

    def values(weights, observations, actions):
        layers = tuple(range(len(task.WIDTHS) + 1))
        return mlp(weights, "critic", jnp.concatenate([observations, actions], -1), layers)[..., 0]  # [E, B]

    def adam(state, part, gradients):
        steps = state["steps"] + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["first"][part], gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["second"][part], gradients)

        def moved(p, m, v):
            return p - task.LEARNING_RATE * (m / (1 - 0.9**steps)) / (jnp.sqrt(v / (1 - 0.999**steps)) + task.EPSILON)

        return jax.tree.map(moved, state["parts"][part], first, second), first, second

    def update(state, batch):
        observations, actions, rewards, following, discounts = batch
        parts = state["parts"]
        key, *keys = jax.random.split(state["key"], 3)
        noise, next_noise = (jax.random.normal(k, (task.BATCH, task.ACTION)) for k in keys)
        temperature = jnp.exp(parts["log_temperature"]["log_temperature"])
        next_actions, next_log_probs = policy(parts["actor"], following, next_noise)
        value = values(parts["target"], following, next_actions).min(0) - temperature * next_log_probs
        goal = rewards + discounts * value

        def critic_loss(critic):
            return jnp.square(values(critic, observations, actions) - goal).mean()

        loss, gradients = jax.value_and_grad(critic_loss)(parts["critic"])
        new = {"critic": adam(state, "critic", gradients)}
        critic = new["critic"][0]

        def actor_loss(actor):
            drawn, log_probs = policy(actor, observations, noise)
            return (temperature * log_probs - values(critic, observations, drawn).min(0)).mean(), log_probs.mean()

        gradients, log_prob = jax.grad(actor_loss, has_aux=True)(parts["actor"])
        new["actor"] = adam(state, "actor", gradients)
        slope = {"log_temperature": -(log_prob + task.TARGET_ENTROPY)}
        new["log_temperature"] = adam(state, "log_temperature", slope)
        target = jax.tree.map(lambda t, c: (1 - task.TAU) * t + task.TAU * c, parts["target"], critic)
        return {
            "parts": {name: value[0] for name, value in new.items()} | {"target": target},
            "first": {name: value[1] for name, value in new.items()},
            "second": {name: value[2] for name, value in new.items()},
            "steps": state["steps"] + 1,
            "key": key,
        }, loss

    return lambda state, batches: jax.lax.scan(update, state, batches)
