"""Flags of ``train_classifier``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from serl_fast.rewards.classifier import ClassifierConfig

BINARY = ("failure", "success")


@dataclasses.dataclass(frozen=True)
class TrainClassifierConfig:
    """Flags of ``train_classifier``.

    Attributes:
        success_dir: frames that show success: files or folders of pickled transitions, PNG or JPEG images, MP4 clips.
        failure_dir: frames that do not.
        labelled_data: files or folders with frames of several classes: the ``labels`` of a pickle's rows say which, or
            a name of a class in the file's or folder's name.
        classes: in place of success and failure: name=folder for each class, or name alone for one in labelled_data.
        success_class: of these, the one that means success; by default one named success.
        image_keys: cameras, as they are called in the environment.
        output_dir: where the classifier goes, new, empty, or with an older one, which is replaced; by default
            runs/classifier_<time>.
        batch_size: frames per gradient step, as many of each class.
        num_epochs: passes over as many frames as there are, at most.
        lr: Adam's learning rate.
        encoder: resnet-pretrained (frozen), resnet (trained), small, impala_small, resnet18, mobilenet.
        pretrained_encoder: resnet10_params.pkl for the ResNet-10; by default ~/.serl/resnet10_params.pkl for
            resnet-pretrained and none for resnet.
        image_size: height and width that frames are resized to, px; at least 31.
        validation_fraction: of every class, held out by whole episodes.
        patience: epochs without a better held-out loss after which training ends; 0 for never.
        false_positive_rate: share of held-out failures that may pass for success; the threshold is chosen for it.
        color_jitter: brightness, contrast and saturation of a training frame vary by so much up and down.
        crop_padding: pixels by which a training frame is shifted at most.
        seed: of every random number.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        execution: "auto" is compiled where there is a C++ compiler, else eager.
        strict_execution: end with an error where the step does not compile; otherwise it runs eagerly, which is said.
        precision: of the forward and backward passes of training.
        threads: torch's threads; 0 for all cores but one.
        image_backend: what reads PNG and JPEG files, and clips: "dali" for NVIDIA DALI, "torch" for Pillow, PyAV and
            PyTorch, "auto" for DALI where it is installed.
    """

    success_dir: tuple[Path, ...] = ()
    failure_dir: tuple[Path, ...] = ()
    labelled_data: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()
    success_class: str | None = None
    image_keys: tuple[str, ...] = ("image",)
    output_dir: Path | None = None
    batch_size: int = 64
    num_epochs: int = 150
    lr: float = 1e-4
    encoder: str = "resnet-pretrained"
    pretrained_encoder: Path | None = None
    image_size: int = 128
    validation_fraction: float = 0.2
    patience: int = 10
    false_positive_rate: float = 0.01
    color_jitter: float = 0.2
    crop_padding: int = 4
    seed: int = 0
    device: str = "auto"
    execution: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    strict_execution: bool = False
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    threads: int = 0
    image_backend: Literal["auto", "dali", "torch"] = "auto"

    def __post_init__(self) -> None:
        for name, smallest in {"num_epochs": 1, "patience": 0, "threads": 0, "seed": 0, "image_size": 31}.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}")
        for name in ("validation_fraction", "false_positive_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not self.image_keys or len(set(self.image_keys)) < len(self.image_keys):
            raise ValueError(f"image_keys are {self.image_keys}; name at least one camera, each once")
        if self.batch_size < len(self.class_names):
            raise ValueError(
                f"batch_size is {self.batch_size}; it must hold a frame of each of {len(self.class_names)} classes"
            )
        self.sources()
        self.agent()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of every class, in the order of their numbers."""
        return tuple(entry.partition("=")[0] for entry in self.classes) or BINARY

    def sources(self) -> list[tuple[Path, int | None]]:
        """Where frames are, and of which class.

        Raises:
            ValueError: there is nothing, or classes are given in two ways.
        """
        given = {"success_dir": self.success_dir, "failure_dir": self.failure_dir}
        names = self.class_names
        if self.classes:
            for name in [name for name, paths in given.items() if paths]:
                raise ValueError(f"{name} is for the classes failure and success; give its class in --classes too")
            if len(names) < 2 or len(set(names)) < len(names) or not all(names):
                raise ValueError(f"classes are {self.classes}; accepted: name=folder of two classes at least")
            pairs = [entry.partition("=")[2] for entry in self.classes]
            found: list[tuple[Path, int | None]] = [(Path(path), n) for n, path in enumerate(pairs) if path]
        else:
            found = [(path, BINARY.index("failure")) for path in self.failure_dir]
            found += [(path, BINARY.index("success")) for path in self.success_dir]
        found += [(path, None) for path in self.labelled_data]
        if not found:
            raise ValueError("there is no data: give --success_dir and --failure_dir, --labelled_data or --classes")
        return found

    @property
    def positive(self) -> int | None:
        """Number of the class that means success; None: no class does."""
        wanted = self.success_class or "success"
        if wanted in self.class_names:
            return self.class_names.index(wanted)
        if self.success_class is not None:
            raise ValueError(f"success_class is {wanted!r}; the classes are {', '.join(self.class_names)}")
        return None

    def agent(self) -> ClassifierConfig:
        """The classifier's hyper-parameters."""
        several = len(self.classes)
        if not several and self.positive != 1:
            raise ValueError(f"success_class is {self.success_class!r}; of failure and success it is success")
        return ClassifierConfig(
            classes=several or 1,
            success_class=self.positive if several else None,
            encoder=self.encoder,
            image_size=(self.image_size, self.image_size),
            crop_padding=self.crop_padding,
            color_jitter=self.color_jitter,
            learning_rate=self.lr,
        )
