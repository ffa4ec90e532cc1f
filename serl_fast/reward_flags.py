"""Flags of every command that acts in an environment: who says what success is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from serl_fast.engine.policy import ACTING_THREADS, with_threads
from serl_fast.envs import Judge, parse_condition
from serl_fast.envs.classifier_reward import Observation
from serl_fast.networks.classifier import RewardClassifier
from serl_fast.rewards.files import load_classifier

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardFlags:
    """Who gives the reward and ends episodes.

    Attributes:
        reward: "env" for the environment itself; classifier=FOLDER for a classifier of ``train_classifier``, which sees
            the cameras that it was trained on, whether or not they are among image_keys.
        reward_threshold: probability from which a frame counts as success; by default the classifier's own.
        reward_consecutive: frames in a row that must count.
        reward_condition: what must hold of the state as well, such as "state[6]>0.04 and state[0]<0.9".
        reward_class: number of the class that means success, where the classifier has several and does not say it.
    """

    reward: str = "env"
    reward_threshold: float | None = None
    reward_consecutive: int = 1
    reward_condition: str | None = None
    reward_class: int | None = None

    def __post_init__(self) -> None:
        kind, _, folder = self.reward.partition("=")
        if self.reward != "env" and (kind != "classifier" or not folder):
            raise ValueError(f"reward is {self.reward!r}; accepted: env, classifier=FOLDER")
        if self.reward == "env":
            for field in dataclasses.fields(RewardFlags):
                if field.name != "reward" and getattr(self, field.name) != field.default:
                    raise ValueError(
                        f"{field.name} is {getattr(self, field.name)!r}, but reward is 'env'; give "
                        "--reward classifier=FOLDER, or leave it out"
                    )
        if self.reward_threshold is not None and not 0 < self.reward_threshold < 1:
            raise ValueError(f"reward_threshold is {self.reward_threshold}; it must be between 0 and 1")
        if self.reward_consecutive < 1:
            raise ValueError(f"reward_consecutive is {self.reward_consecutive}; it must be at least 1 frame")
        if self.reward_condition is not None:
            parse_condition(self.reward_condition)

    def judge(self) -> Judge | None:
        """The judge for ``make_env``; None where the environment gives the reward.

        Raises:
            CheckpointError: there is no such classifier, or it is damaged.
            ValueError: the class that means success is not known.
        """
        if self.reward == "env":
            return None
        folder = Path(self.reward.partition("=")[2]).expanduser()
        classifier = load_classifier(folder)
        chosen = classifier.success_class if self.reward_class is None else self.reward_class
        if classifier.classes == 1 and chosen is not None:
            raise ValueError(f"reward_class is {chosen}, but {folder} knows success and failure alone; leave it out")
        if classifier.classes > 1 and (chosen is None or not 0 <= chosen < classifier.classes):
            raise ValueError(
                f"reward_class is {chosen}; {folder} has {classifier.classes} classes: which of 0 to "
                f"{classifier.classes - 1} means success?"
            )
        if classifier.encoder.frames > 1:
            raise ValueError(f"{folder} looks at {classifier.encoder.frames} frames at once; a judge is shown one")
        threshold = classifier.threshold if self.reward_threshold is None else self.reward_threshold
        condition = parse_condition(self.reward_condition) if self.reward_condition else None
        said = f"; condition: {self.reward_condition}" if condition else ""
        print(
            f"reward: {folder}, cameras {', '.join(classifier.image_keys)}, success from {threshold:.4g} in "
            f"{self.reward_consecutive} frame(s) in a row{said}"
        )
        return Judge(
            probability_of(classifier, chosen), classifier.image_keys, threshold, self.reward_consecutive, condition
        )


def probability_of(classifier: RewardClassifier, success_class: int | None = None) -> Callable[[Observation], float]:
    """A function that gives the probability of success of one observation.

    It runs on one of torch's threads, as acting does: a team would wait for cores that the learner has.
    """

    def probability(observation: Observation) -> float:
        with torch.inference_mode(), with_threads(ACTING_THREADS, CPU):
            return classifier.predict_success(observation, success_class=success_class)[0]

    return probability
