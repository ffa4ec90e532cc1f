"""Control steps per second of one environment in one process: `python -m serl_robots.bench`."""

import argparse
import time

import gymnasium

import serl_robots
from serl_robots.experts import expert
from serl_robots.registration import ENVIRONMENTS


def control_steps_per_second(env_id: str, image_keys: tuple[str, ...] = (), seconds: float = 2.0) -> float:
    """Steps per second with the scripted expert acting, resets included.

    Args:
        env_id: of `serl_robots.registration`.
        image_keys: cameras observed.
        seconds: how long to measure.
    """
    env = gymnasium.make(env_id, image_keys=image_keys, disable_env_checker=True)
    policy = expert(env)
    observation, _ = env.reset(seed=0)
    steps, finished = 0, False
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        if finished:
            observation, _ = env.reset()
        observation, _, terminated, truncated, _ = env.step(policy(observation))
        finished = terminated or truncated
        steps += 1
    env.close()
    return steps / elapsed


def main() -> None:
    """Print one line per environment and kind of observation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured per line")
    seconds = parser.parse_args().seconds
    print(f"serl-robots {serl_robots.__version__}: control steps/s of one process, expert acting, with resets")
    for env_id in ENVIRONMENTS:
        for image_keys in ((), ("front", "wrist")):
            name = "state" if not image_keys else f"{len(image_keys)} images 128x128"
            try:
                print(f"{env_id:<26}{name:<20}{control_steps_per_second(env_id, image_keys, seconds):>8.0f}")
            except RuntimeError as error:  # no OpenGL
                print(f"{env_id:<26}{name:<20} {error}")


if __name__ == "__main__":
    main()
