"""Learn the reward of Reach from pictures of its goal with VICE, and write it into a replay store.

    python docs/examples/vice_reach.py

Goals are the last pictures of episodes that succeeded. Everything else is what a wandering arm saw, a few successes
among it, and nobody says which. The simulator's own success is used for reporting only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import serl_robots  # noqa: F401  registers the environments
import torch
from serl_robots.experts import expert
from torch import Tensor, nn

from serl_fast.data.batches import BatchReader
from serl_fast.engine import Engine, EngineConfig
from serl_fast.replay import Mixture, ReplayStore
from serl_fast.rewards.vice import ViceConfig, relabel, vice

CAMERA, SIZE, PATCH = "wrist", 48, 4
Transition = dict[str, Any]


class Patches(nn.Module):
    """An image trunk without weights: each patch of 4 x 4 pixels is a position, its 48 values are the channels.

    It makes the example quick on a CPU. Leave ``trunk`` out for the frozen ResNet-10.
    """

    feature_shape = (SIZE // PATCH, SIZE // PATCH, 3 * PATCH**2)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [..., H, W, 3] to float [..., H / 4, W / 4, 48] in -1 to 1."""
        pixels = images.float() / 127.5 - 1
        patches = pixels.unflatten(-2, (-1, PATCH)).unflatten(-4, (-1, PATCH))  # [..., h, 4, w, 4, 3]
        return patches.transpose(-4, -3).flatten(-3)


def wander(env: gymnasium.Env, episodes: int, longest: int, seed: int) -> Iterator[tuple[Transition, float]]:
    """Episodes of up to ``longest`` random motions, then of the scripted expert with an unsteady hand.

    Yields:
        A transition, whose reward is the simulator's success, and the distance to the target after it in m.
    """
    random, solve = np.random.default_rng(seed), expert(env, noise=0.5, seed=seed)
    for episode in range(episodes):
        observation, _ = env.reset(seed=1000 * seed + episode)
        wandering, step, done = random.integers(longest), 0, False
        while not done:
            action = random.uniform(-1, 1, 6).astype(np.float32) if step < wandering else solve(observation)
            following, reward, terminated, truncated, _ = env.step(action)
            transition = {
                "observations": observation,
                "actions": action,
                "next_observations": following,
                "rewards": float(reward),
                "terminated": bool(terminated),
                "truncated": bool(truncated),
            }
            yield transition, -env.unwrapped.progress()
            observation, step, done = following, step + 1, terminated or truncated


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a success scores higher than another picture; ties count half."""
    difference = scores[labels][:, None] - scores[~labels][None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def store_of(transitions: Sequence[Transition], capacity: int) -> ReplayStore:
    """A store with these transitions."""
    store = ReplayStore.from_example(transitions[0], capacity=capacity, seed=0)
    for transition in transitions:
        store.append(transition)
    return store


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Collect, train, judge on pictures that were held out, relabel.

    Returns:
        ``auc`` and ``accuracy`` on the held-out pictures; ``rewarded_distance`` and ``other_distance``, the median
        distance to the target (m) of those with reward 1 and 0; ``relabelled``, the share with reward 1 in the store.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goals", type=int, default=150, help="episodes that give goal pictures")
    parser.add_argument("--episodes", type=int, default=80, help="episodes of everything else, and as many held out")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=64, help="half of it goals")
    parser.add_argument("--execution", default="eager", choices=("eager", "compiled"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    start = time.monotonic()

    env = gymnasium.make("serl_robots/Reach-v0", image_keys=(CAMERA,), image_size=SIZE)
    first = 3 * options.seed  # no two of the three ever share a seed
    goals = store_of([t for t, _ in wander(env, options.goals, 15, first) if t["rewards"]], 10_000)
    online = store_of([t for t, _ in wander(env, options.episodes, 30, first + 1)], 10_000)
    held_out, distances = zip(*wander(env, options.episodes, 30, first + 2), strict=True)
    env.close()
    print(f"{len(goals)} goals, {len(online)} other transitions, {len(held_out)} held out")

    pictures = {CAMERA: np.stack([t["next_observations"][CAMERA] for t in held_out])}
    success = np.array([t["rewards"] > 0 for t in held_out])

    agent = vice((CAMERA,), ViceConfig(image_size=(SIZE, SIZE)), trunk=Patches())
    discriminator = agent.networks["vice"]
    engine = Engine(agent, EngineConfig(options.execution), seed=options.seed)
    mixture, reader = Mixture([online, goals]), BatchReader(options.batch_size)  # the second half of a batch: goals
    for update in range(1, options.updates + 1):
        metrics = engine.update(reader.read(mixture))
        if update % 100 == 0 or update == options.updates:
            scores = discriminator.probabilities(pictures).numpy()
            shown = ", ".join(f"{name.removeprefix('vice/')} {value:.3f}" for name, value in metrics.items())
            print(f"update {update}: {shown}; AUC {area_under_curve(scores, success):.3f}")

    rewarded = scores >= discriminator.threshold
    result = {
        "auc": area_under_curve(scores, success),
        "accuracy": float((rewarded == success).mean()),
        "rewarded_distance": float(np.median(np.array(distances)[rewarded])) if rewarded.any() else float("nan"),
        "other_distance": float(np.median(np.array(distances)[~rewarded])) if not rewarded.all() else float("nan"),
        "relabelled": relabel(agent.networks, online),
    }
    print(
        f"held out: AUC {result['auc']:.3f}, accuracy {result['accuracy']:.3f}; median distance to the target "
        f"{100 * result['rewarded_distance']:.1f} cm with reward 1, {100 * result['other_distance']:.1f} cm with 0"
    )
    print(f"store: {result['relabelled']:.1%} relabelled as success; {time.monotonic() - start:.0f} s in all")
    return result


if __name__ == "__main__":
    main()
