"""Flags of ``train_hybrid`` and the presets of the manuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from serl_fast.agents.sac_config import UNSIZED_ENCODERS, SACConfig
from serl_fast.core import Compat
from serl_fast.envs import SetupModeName
from serl_fast.reward_flags import RewardFlags
from serl_fast.run_setup import check_augmentation
from serl_fast.schedule import LoopConfig

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "max_steps": 1000,
        "batch_size": 32,
        "training_starts": 100,
        "random_steps": 100,
        "preset": "quick",
    },
    "medium": {"max_steps": 50_000, "batch_size": 128, "training_starts": 1000, "preset": "medium"},
    "full": {"max_steps": 500_000, "batch_size": 256, "training_starts": 5000, "preset": "full"},
}


@dataclasses.dataclass(frozen=True)
class TrainHybridConfig(RewardFlags):
    """Flags of ``train_hybrid``; those of the reward are in :class:`serl_fast.reward_flags.RewardFlags`.

    Attributes:
        env: any gymnasium id; ``module:Id-v0`` imports ``module`` first.
        demo_paths: demonstrations, files or folders of any format that ``python -m serl_fast.data`` reads; none means
            learning from online data and interventions alone.
        init: a checkpoint of train_offline or of another run, whose weights this one starts with. Where it is of
            another algorithm than SAC, the run goes on with that one and its settings, and flags of SAC are not used.
        image_keys: cameras to learn from; none means learning from the state.
        image_size: height and width of their images, px, where the environment takes it.
        setup_mode: arms and grippers: 6, 7, 12 or 14 action dimensions.
        algorithm: "sac" (hybrid where the setup mode learns a gripper), or module:callable of your own, which is given
            (state_dim, action_dim, image_keys) and returns a serl_fast.core.Agent.
        max_steps: gradient steps at which the run ends.
        batch_size: transitions per gradient step, half of them demonstrations.
        lr: Adam's learning rate.
        save_dir: where results go; by default runs/<env>_seed<seed>_<time>.
        training_starts: online transitions to wait for before learning.
        random_steps: environment steps with uniformly random actions at the start; by default 1000, with --init 0.
        cta_ratio: critic steps per actor step.
        steps_per_update: gradient steps between two publications of the policy to the actor.
        discount: gamma.
        replay_buffer_capacity: transitions kept in each store.
        pretrain_steps: gradient steps on demonstrations alone before the actor starts.
        log_interval: gradient steps between two lines of losses; a last line has the rest when the run ends.
        save_interval: gradient steps between two checkpoints; 0 for none but the last.
        eval_interval: gradient steps between two evaluations; 0 for none. The final one stands for one that is due at
            the end.
        eval_episodes: episodes of one evaluation, without interventions.
        final_eval_episodes: fresh episodes after training; 0 for none.
        stop_success_rate: end early when an evaluation and its repetition, four times as long, reach this; 0 for never.
        max_utd_ratio: the learner never exceeds so many gradient steps per environment step.
        min_utd_ratio: the actor waits rather than fall below so many (simulations only).
        operator: who may intervene: "none", "scripted", or module:callable that wraps the environment.
        seed: of every random number.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        execution: "auto" is compiled where there is a C++ compiler, else eager.
        strict_execution: end with an error where the step does not compile; otherwise it runs eagerly, which is said.
        replay_device: where batches are drawn. "host": in the stores, ahead by threads where the learner has a GPU.
            "device": in a copy of the stores in the learner's memory, inside its step; that of the demonstrations has
            room for 20 000 corrections and grows. "auto": "device" on a GPU that has room for the copy.
        augment: how images are cropped at random. "triton": by kernels inside the learner's step, which need a CUDA
            device. "torch": there, by plain PyTorch. "dali": by NVIDIA DALI on the host, before the step. "auto":
            "triton" on a CUDA device, else "torch".
        feature_cache: features of so many random crops of every frame are stored beside its images, and updates read
            them instead of encoding images; needs a frozen encoder. 0: updates crop and encode.
        feature_cache_precision: of the stored features.
        pretrained_encoder: resnet10_params.pkl for the cameras' ResNet-10; by default ~/.serl/resnet10_params.pkl for
            resnet-pretrained and none for resnet.
        precision: of the forward and backward passes; one line says where the CPU has no instructions for it.
        threads: torch's threads for learning; 0 chooses: on the CPU two for state observations, all but one for images.
            Acting takes one.
        resume: continue the run in save_dir (or the newest under runs/) from its last checkpoint.
        synchronous: actor and learner take turns in one thread at max_utd_ratio (or 1): reproducible.
        normalize_state: scale the state by the demonstrations' statistics.
        critic_ensemble_size: number of critics.
        critic_subsample_size: critics whose minimum is the target; by default all.
        temperature_init: SAC's temperature at the start.
        target_entropy: by default -(continuous action dimensions) / 2.
        target_update_rate: tau of the target networks.
        hidden_widths: hidden layers of policy and critics.
        activation: of policy and critics: tanh, relu, silu, gelu, elu, leaky_relu.
        backup_entropy: the target value includes the policy's entropy.
        reward_scale: every reward is multiplied by it.
        reward_bias: then added to every reward.
        warmup_steps: steps of a network's own Adam over which its learning rate rises from 0; the actor's takes one per
            cta_ratio gradient steps.
        cosine_decay_steps: such a step at which a cosine has brought the learning rate to 0; by default it is constant.
        weight_decay: of AdamW.
        clip_gradient_norm: largest global norm of a network's gradient; by default any.
        encoder: of the cameras: resnet-pretrained (frozen), resnet (trained), small, impala_small, resnet18, mobilenet.
        pooling: of the encoder's feature maps: spatial_embeddings, spatial_softmax, average, max, none; by default
            the encoder's own.
        encoder_dropout: dropout on the camera embeddings, on the policy's path.
        compat: "hil_serl" reproduces the original's update exactly, its defects included.
        save_replay: keep the replay stores beside the last checkpoint, so that resuming loses no data.
        video_episodes: episodes shown in rollout.mp4; 0 for no video.
        preset: defaults of a size; flags given explicitly win.
    """

    env: str = "serl_robots/PickCube-v0"
    demo_paths: tuple[Path, ...] = ()
    init: Path | None = None
    image_keys: tuple[str, ...] = ()
    image_size: int | None = None
    setup_mode: SetupModeName = "single-arm-learned-gripper"
    algorithm: str = "sac"
    max_steps: int = 100_000
    batch_size: int = 256
    lr: float = 3e-4
    save_dir: Path | None = None
    training_starts: int = 1000
    random_steps: int | None = None
    cta_ratio: int = 2
    steps_per_update: int = 50
    discount: float = 0.95
    replay_buffer_capacity: int = 200_000
    pretrain_steps: int = 0
    log_interval: int = 100
    save_interval: int = 10_000
    eval_interval: int = 1000
    eval_episodes: int = 20
    final_eval_episodes: int = 50
    stop_success_rate: float = 0.95
    max_utd_ratio: float | None = None
    min_utd_ratio: float | None = None
    operator: str = "none"
    seed: int = 0
    device: str = "auto"
    execution: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    strict_execution: bool = False
    replay_device: Literal["auto", "host", "device"] = "auto"
    augment: Literal["auto", "triton", "dali", "torch"] = "auto"
    feature_cache: int = 0
    feature_cache_precision: Literal["float16", "float32"] = "float16"
    pretrained_encoder: Path | None = None
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    threads: int = 0
    resume: bool = False
    synchronous: bool = False
    normalize_state: bool = True
    critic_ensemble_size: int = 2
    critic_subsample_size: int | None = None
    temperature_init: float = 0.01
    target_entropy: float | None = None
    target_update_rate: float = 0.005
    hidden_widths: tuple[int, ...] = (256, 256)
    activation: str = "tanh"
    backup_entropy: bool = False
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    warmup_steps: int = 0
    cosine_decay_steps: int | None = None
    weight_decay: float = 0.0
    clip_gradient_norm: float | None = None
    encoder: str = "resnet-pretrained"
    pooling: str | None = None
    encoder_dropout: float = 0.1
    compat: Compat | None = None
    save_replay: bool = True
    video_episodes: int = 3
    preset: Literal["quick", "medium", "full"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loop()
        self.agent()
        if self.replay_buffer_capacity < self.training_starts:
            raise ValueError(
                f"replay_buffer_capacity is {self.replay_buffer_capacity}; it must hold at least "
                f"training_starts = {self.training_starts} transitions"
            )
        if self.pretrain_steps and not self.demo_paths and not self.resume:
            raise ValueError(
                f"pretrain_steps is {self.pretrain_steps}, but there are no demonstrations: give --demo_paths"
            )
        if self.init is not None and self.pretrained_encoder is not None:
            raise ValueError(
                "init and pretrained_encoder: both say where the encoder's weights come from; leave one out"
            )
        if self.feature_cache and self.algorithm != "sac":
            raise ValueError(
                f"feature_cache is {self.feature_cache}; algorithm {self.algorithm} prepares images in its own way, "
                "so it takes 0"
            )
        if self.feature_cache and not self.image_keys:
            raise ValueError(f"feature_cache is {self.feature_cache}, but there are no cameras: give --image_keys")
        check_augmentation(self)
        for name in ("final_eval_episodes", "video_episodes", "threads", "feature_cache"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    def loop(self) -> LoopConfig:
        """The schedule."""
        shared = {f.name for f in dataclasses.fields(LoopConfig)} & {f.name for f in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in shared}
        values["stop_success_rate"] = self.stop_success_rate or None
        if self.random_steps is None:
            values["random_steps"] = 1000 if self.init is None else 0
        return LoopConfig(critic_to_actor_ratio=self.cta_ratio, **values)

    def agent(self, image_sizes: Sequence[tuple[int, ...]] = ()) -> SACConfig:
        """The agent's hyper-parameters.

        Args:
            image_sizes: (height, width) of each camera's images.

        Raises:
            ValueError: the encoder does not resize and the cameras differ in size.
        """
        shared = {f.name for f in dataclasses.fields(SACConfig)} & {f.name for f in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in shared - {"image_size"}}
        if image_sizes and self.encoder in UNSIZED_ENCODERS:
            if len(set(image_sizes)) > 1:
                raise ValueError(f"encoder {self.encoder!r} does not resize; the cameras have sizes {image_sizes}")
            values["image_size"] = tuple(image_sizes[0])
        if self.augment == "dali":
            values["crop_padding"] = 0  # the batches come cropped
        return SACConfig(
            initial_temperature=self.temperature_init,
            learning_rate=self.lr,
            # Beside images the state is squeezed through HIL-SERL's 64-wide branch; alone it is the whole observation
            # and passes as it is, as in SERL's state agents. The original always has the branch.
            proprioception_dim=64 if self.image_keys or self.compat else None,
            **values,
        )
