"""Learn to reach from VICE's reward alone: pictures of the goal in, a policy out.

    python docs/examples/vice_policy.py

The discriminator looks through the wrist camera; the policy reads the state, which knows where the target is. An
episode ends where the discriminator sees a goal. The simulator's own success only judges the result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from vice_reach import CAMERA, SIZE, Patches, store_of, wander  # the example beside this one

from serl_fast.agents.sac import SACConfig, sac
from serl_fast.data.batches import BatchReader
from serl_fast.engine import Engine, EngineConfig, default_execution
from serl_fast.replay import Mixture, ReplayStore
from serl_fast.rewards.vice import ViceConfig, rewarded_by, rewards, vice

LONGEST, DISCOUNT, RANDOM_STEPS = 50, 0.9, 100


class WithTarget(gymnasium.ObservationWrapper):
    """The full state, target included, beside the picture."""

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Replace the state."""
        return {**observation, "state": self.env.unwrapped.privileged_state()}


def act(engine: Engine, state: np.ndarray, deterministic: bool = False) -> np.ndarray:
    """One action [6]."""
    return engine.act({"state": torch.from_numpy(state)[None]}, deterministic)[0].numpy()


def train(env: gymnasium.Env, options: argparse.Namespace) -> Engine:
    """Train discriminator and policy side by side."""
    first, random = 3 * options.seed, np.random.default_rng(options.seed)
    goals = store_of([t for t, _ in wander(env, options.goals, 15, first) if t["rewards"]], 10_000)
    wandering = store_of([t for t, _ in wander(env, 40, 30, first + 1)], 10_000)
    demonstrations = store_of([t for t, _ in wander(env, 30, 1, first + 2)], 10_000)  # the expert from the start
    online = ReplayStore.from_example(wandering[0], capacity=100_000, seed=options.seed)

    judge = vice((CAMERA,), ViceConfig(image_size=(SIZE, SIZE)), trunk=Patches())
    judge_engine = Engine(judge, EngineConfig("eager"), seed=options.seed)
    judged, learned = BatchReader(64), BatchReader(128)
    for _ in range(options.updates):
        judge_engine.update(judged.read(Mixture([wandering, goals])))

    config = SACConfig(hidden_widths=(64, 64), learning_rate=1e-3, proprioception_dim=None)
    width = env.observation_space["state"].shape[0] + 3  # and the target
    agent = rewarded_by(sac(width, 6, (), config), judge.networks, ends_episode=True)
    engine = Engine(agent, EngineConfig(options.execution), seed=options.seed)
    half_goals = Mixture([online, goals])
    half_demonstrations = Mixture([online, demonstrations], discount=DISCOUNT)

    observation, _ = env.reset(seed=options.seed)
    lengths, length = [], 0
    for step in range(1, options.steps + 1):
        exploring = step <= RANDOM_STEPS
        action = random.uniform(-1, 1, 6).astype(np.float32) if exploring else act(engine, observation["state"])
        following = env.step(action)[0]
        claimed = float(rewards(judge.networks, {CAMERA: torch.from_numpy(following[CAMERA])[None]}))
        length += 1
        online.append(
            {
                "observations": observation,
                "actions": action,
                "next_observations": following,
                "rewards": claimed,
                "terminated": claimed > 0,
                "truncated": length == LONGEST,
            }
        )
        observation = following
        if claimed or length == LONGEST:
            lengths.append(length)
            observation, length = env.reset()[0], 0
        if not exploring:
            if step % 4 == 0:
                judge_engine.update(judged.read(half_goals))
            engine.update(learned.read(half_demonstrations), with_actor=False)
            metrics = engine.update(learned.read(half_demonstrations))
        if step % 1000 == 0:
            shown = ", ".join(f"{name} {metrics[name]:.2f}" for name in ("critic/predicted_qs", "actor/entropy"))
            print(f"step {step}: the last 20 episodes took {np.mean(lengths[-20:]):.1f} steps, {shown}")
    return engine


def success_rate(env: gymnasium.Env, engine: Engine, episodes: int = 40) -> float:
    """Share of fresh episodes that the simulator calls a success, acting without noise."""
    successes = 0
    for episode in range(episodes):
        observation, _ = env.reset(seed=900_000 + episode)
        terminated = truncated = False
        while not (terminated or truncated):
            action = act(engine, observation["state"], deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
        successes += terminated
    return successes / episodes


def main(arguments: Sequence[str] | None = None) -> float:
    """Train and judge; returns the success rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goals", type=int, default=150, help="episodes that give goal pictures")
    parser.add_argument("--updates", type=int, default=300, help="of the discriminator before the first step")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--execution", default=default_execution(), choices=("eager", "compiled"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    start = time.monotonic()

    made = gymnasium.make("serl_robots/Reach-v0", image_keys=(CAMERA,), image_size=SIZE)
    env = WithTarget(made)
    # While it trains, nobody but the discriminator says when an episode is over.
    engine = train(WithTarget(made.unwrapped), options)
    rate = success_rate(env, engine)
    env.close()
    print(f"success {rate:.0%} of 40 episodes, {time.monotonic() - start:.0f} s in all")
    return rate


if __name__ == "__main__":
    main()
