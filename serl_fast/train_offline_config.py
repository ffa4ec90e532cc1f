"""Flags of ``train_offline``, and an algorithm's settings from key=value pairs."""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from serl_fast.agents.build import ALGORITHMS
from serl_fast.agents.sac_config import UNSIZED_ENCODERS
from serl_fast.envs import SetupModeName
from serl_fast.run_setup import check_augmentation
from serl_fast.schedule import LoopConfig

OFFERED = tuple(name for name in ALGORITHMS if name != "hybrid_sac")
"""Algorithms by name; hybrid SAC is "sac" in a setup mode that learns grippers."""


@dataclasses.dataclass(frozen=True)
class TrainOfflineConfig:
    """Flags of ``train_offline``.

    Attributes:
        demo_paths: data sets: files or folders of any format that ``python -m serl_fast.data`` reads.
        image_keys: cameras to learn from; none means learning from the state.
        setup_mode: arms and grippers: 6, 7, 12 or 14 action dimensions; by default as many as the data have, all of
            them continuous.
        env: where the policy is evaluated, any gymnasium id; by default there is no evaluation. Its action range is
            that of the data.
        image_size: height and width of the environment's images, px, where it takes it.
        algorithm: "bc", "iql", "td3bc", "rebrac", "cql", "calql", "sac" (hybrid where the setup mode learns a gripper;
            it overestimates), or module:callable of your own, which is given (state_dim, action_dim, image_keys) and
            returns a serl_fast.core.Agent.
        algorithm_options: the algorithm's settings as key=value, such as alpha=0.25 or hidden_widths=256,256,256.
        max_steps: gradient steps at which the run ends.
        batch_size: transitions per gradient step.
        lr: Adam's learning rate of every network; by default the algorithm's own.
        save_dir: where results go; by default runs/offline_<algorithm>_seed<seed>_<time>.
        cta_ratio: critic steps per actor step; by default the algorithm's own.
        discount: gamma; by default 0.95 for sac, else 0.99.
        reward_scale: every reward is multiplied by it.
        reward_bias: then added to every reward.
        drop_idle: leave out steps whose action is zero in every dimension, but for the last of an episode.
        filter_key: a named selection of episodes of the data set, such as robomimic's masks or a split.
        top_return: part of the episodes, those with the highest return: 0.1 and algorithm bc is 10 % BC.
        normalize_state: scale the state by the data's statistics, which are saved with the policy.
        log_interval: gradient steps between two lines of losses.
        save_interval: gradient steps between two checkpoints; 0 for none but the last.
        eval_interval: gradient steps between two looks at the critics' values, and two evaluations where there is an
            environment; 0 for none.
        eval_episodes: episodes of one evaluation.
        final_eval_episodes: fresh episodes after training; 0 for none.
        video_episodes: episodes shown in rollout.mp4; 0 for no video.
        seed: of every random number.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        execution: "auto" is compiled where there is a C++ compiler, else eager.
        strict_execution: end with an error where the step does not compile; otherwise it runs eagerly, which is said.
        data_on_disk: folder for a store of the data that is larger than memory, removed at the end; by default the
            data are in memory.
        replay_device: where batches are drawn, "host" or "device" memory; see train_hybrid.
        augment: how images are cropped at random: "triton", "torch", "dali" or "auto"; see train_hybrid.
        precision: of the forward and backward passes; one line says where the CPU has no instructions for it.
        threads: torch's threads; 0 chooses.
        pretrained_encoder: resnet10_params.pkl for the cameras' ResNet-10; by default ~/.serl/resnet10_params.pkl.
        resume: continue the run in save_dir (or the newest under runs/) from its last checkpoint.
    """

    demo_paths: tuple[Path, ...]
    image_keys: tuple[str, ...] = ()
    setup_mode: SetupModeName | None = None
    env: str | None = None
    image_size: int | None = None
    algorithm: str = "sac"
    algorithm_options: tuple[str, ...] = ()
    max_steps: int = 50_000
    batch_size: int = 256
    lr: float | None = None
    save_dir: Path | None = None
    cta_ratio: int | None = None
    discount: float | None = None
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    drop_idle: bool = False
    filter_key: str | None = None
    top_return: float = 1.0
    normalize_state: bool = True
    log_interval: int = 100
    save_interval: int = 10_000
    eval_interval: int = 1000
    eval_episodes: int = 20
    final_eval_episodes: int = 50
    video_episodes: int = 3
    seed: int = 0
    device: str = "auto"
    execution: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    strict_execution: bool = False
    data_on_disk: Path | None = None
    replay_device: Literal["auto", "host", "device"] = "auto"
    augment: Literal["auto", "triton", "dali", "torch"] = "auto"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    threads: int = 0
    pretrained_encoder: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.demo_paths:
            raise ValueError("there is nothing to learn from: give --demo_paths")
        if self.algorithm not in OFFERED and ":" not in self.algorithm:
            raise ValueError(
                f"algorithm is {self.algorithm!r}; choose from {', '.join(OFFERED)}, or give module:callable"
            )
        self.loop()
        check_augmentation(self)
        if ":" not in self.algorithm:
            self.agent()
        elif self.algorithm_options or self.lr is not None:
            raise ValueError(
                f"algorithm {self.algorithm} has its settings in its own code; leave out --lr and --algorithm_options"
            )
        elif self.reward_scale != 1 or self.reward_bias:
            raise ValueError(f"algorithm {self.algorithm} has its rewards as they are; leave out --reward_*")
        if not 0 < self.top_return <= 1:
            raise ValueError(f"top_return is {self.top_return}; it must be in (0, 1]")
        if not 0 < abs(self.reward_scale) < math.inf or not math.isfinite(self.reward_bias):
            raise ValueError(
                f"reward_scale is {self.reward_scale} and reward_bias {self.reward_bias}; both must be finite, the "
                "scale not 0"
            )
        for name in ("final_eval_episodes", "video_episodes", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    @property
    def gamma(self) -> float:
        """The discount, by default the algorithm's."""
        return self.discount if self.discount is not None else 0.95 if self.algorithm == "sac" else 0.99

    @property
    def block(self) -> int:
        """Critic steps per actor step, by default the algorithm's."""
        if self.cta_ratio is not None:
            return self.cta_ratio
        return ALGORITHMS[self.algorithm].critic_to_actor_ratio if self.algorithm in ALGORITHMS else 2

    def loop(self) -> LoopConfig:
        """The schedule."""
        return LoopConfig(
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            critic_to_actor_ratio=self.block,
            steps_per_update=self.max_steps,  # nobody acts; evaluations publish for themselves
            discount=self.gamma,
            log_interval=self.log_interval,
            save_interval=self.save_interval,
            eval_interval=self.eval_interval,
            eval_episodes=self.eval_episodes,
            stop_success_rate=None,
            seed=self.seed,
        )

    def agent(self, image_sizes: Sequence[tuple[int, ...]] = (), defaults: Mapping[str, Any] | None = None) -> Any:
        """The configuration of an algorithm of this package.

        Args:
            image_sizes: (height, width) of each camera's images.
            defaults: of settings, in place of the algorithm's own.

        Raises:
            ValueError: an option that the algorithm does not have, or a value that it does not take; the encoder does
                not resize and the cameras differ in size.
        """
        kind = ALGORITHMS[self.algorithm].config
        names = {field.name for field in dataclasses.fields(kind)}
        values: dict[str, Any] = {
            "reward_scale": self.reward_scale,
            "reward_bias": self.reward_bias,
            # Beside images the state is squeezed through a branch of its own; alone it is the whole observation.
            "proprioception_dim": 64 if self.image_keys else None,
            **(defaults or {}),
        }
        if self.lr is not None:
            rates = ("learning_rate", "actor_learning_rate", "critic_learning_rate")
            values |= dict.fromkeys(rates, self.lr)
        given = options(kind, self.algorithm_options, self.algorithm)
        values |= given
        if self.augment == "dali":
            if "crop_padding" in given:
                raise ValueError("augment is 'dali', which crops by 4 pixels before the step: no option crop_padding")
            values["crop_padding"] = 0  # the batches come cropped
        if image_sizes and values.get("encoder") in UNSIZED_ENCODERS:
            if len(set(image_sizes)) > 1:
                raise ValueError(f"encoder {values['encoder']!r} does not resize; the cameras have sizes {image_sizes}")
            values["image_size"] = tuple(image_sizes[0])
        return kind(**{name: value for name, value in values.items() if name in names})


def options(kind: type[Any], given: Sequence[str], algorithm: str) -> dict[str, Any]:
    """Settings from ``key=value``, with the types of the fields of ``kind``.

    Args:
        kind: a configuration's dataclass.
        given: a list's elements are separated by commas.
        algorithm: for messages.

    Raises:
        ValueError: no "=", an unknown key, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals:
            raise ValueError(f"algorithm_options has {each!r}; give key=value, for example alpha=0.25")
        if key in ("reward_scale", "reward_bias"):
            raise ValueError(
                f"algorithm_options has {each!r}; give --{key} {text}, which the data's returns follow too"
            )
        if key not in hints:
            known = ", ".join(f.name for f in dataclasses.fields(kind) if f.name not in ("reward_scale", "reward_bias"))
            raise ValueError(f"algorithm {algorithm} has no option {key!r}; it has {known}")
        values[key] = _value(text, hints[key], key)
    return values


def _value(text: str, hint: Any, key: str) -> Any:
    """``text`` as a value of the annotation ``hint``."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for choice in choices:
        try:
            return _of_type(text, choice)
        except (ValueError, SyntaxError):
            continue
    kinds = " or ".join("none" if c is type(None) else getattr(c, "__name__", str(c)) for c in choices)
    raise ValueError(f"option {key} is {text!r}; accepted: {kinds.replace('typing.', '')}")


def _of_type(text: str, kind: Any) -> Any:
    if kind is type(None):
        if text.lower() == "none":
            return None
        raise ValueError
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _fail()
    if typing.get_origin(kind) is tuple:
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        return tuple(_of_type(part.strip(), typing.get_args(kind)[0]) for part in parts)
    if typing.get_origin(kind) is Literal:
        return text if text in typing.get_args(kind) else _fail()
    if kind is str:
        return text
    value = ast.literal_eval(text)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else _fail()


def _fail() -> Any:
    raise ValueError
