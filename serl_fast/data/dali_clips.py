"""Clips -> equally large frames by NVIDIA DALI; the reference is ``data.video.decode_clip``.

| step | DALI on the CPU against the reference, of 255 |
|---|---|
| decode, VP9 and MJPEG | equal |
| resize | as in ``data.dali_images``: up to 1; in the outermost pixels up to 20 |

On a CPU, DALI 2.4 decodes VP9 and MJPEG, but none of H.264, MPEG-4 and AV1, of which most MP4 files are made. Those go
through the reference, as does every clip that is not plain: damaged, rotated, in colours other than BT.601, with more
than 8 bits, or such that ``data.clip_packets``, which needs PyAV 16, does not know all of its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.clip_packets import plain_clip
from serl_fast.data.dali_images import Backend, chosen
from serl_fast.data.video import Picture, decode_clip
from serl_fast.errors import require

ClipDecoder = Callable[[Path], Iterator[Picture]]
"""(file) -> its frames, uint8 [*size, 3], as :func:`decode_clip` without ``size``."""

ON_A_CPU = ("vp9", "mjpeg")
ON_A_DEVICE = (*ON_A_CPU, "h264", "hevc", "av1")
PIECE = 8  # frames that are decoded at once


class DaliClips:
    """:func:`decode_clip` by DALI, within the tolerances that the module states.

    The file is in memory as it is encoded, and PIECE frames of its own size.

    Args:
        size: (height, width) px of the frames.
        threads: of DALI.
        device_id: number of the CUDA device that decodes, in its own hardware, and resizes; None for the CPU. Frames
            lie in the host's memory. Not yet run on a CUDA device.

    Raises:
        MissingExtraError: DALI is not installed.
    """

    def __init__(self, size: tuple[int, int], *, threads: int = 1, device_id: int | None = None) -> None:
        require("nvidia.dali", "dali")
        self.size = size
        self._threads, self._device_id = threads, device_id

    def __call__(self, path: Path) -> Iterator[Picture]:
        """As :func:`decode_clip`, whatever DALI itself decodes of it.

        Raises:
            DatasetError: see there.
        """
        on_device = self._device_id is not None
        clip = plain_clip(path, ON_A_DEVICE if on_device else ON_A_CPU, even=on_device)
        given = 0
        if clip is not None:
            try:
                for frame in self._frames(*clip):
                    yield frame
                    given += 1
                return
            except RuntimeError as error:
                if "inputs.video" not in str(error):
                    raise
                # A frame that DALI does not decode: the reference does, or says what is wrong with it.
        yield from islice(decode_clip(path, self.size), given, None)

    def _frames(self, content: bytes, count: int) -> Iterator[Picture]:
        pipeline = self._build()
        pipeline.feed_input("clip", [np.frombuffer(content, np.uint8)])
        for start in range(0, count, PIECE):
            (output,) = pipeline.run()
            images: Any = (output if self._device_id is None else output.as_cpu()).as_array()
            assert images.shape == (1, min(PIECE, count - start), *self.size, 3)
            for image in images[0]:
                yield image.copy()

    def _build(self) -> Any:
        """A pipeline for one clip: it takes milliseconds, and what is left of a clip does not reach the next one."""
        dali = require("nvidia.dali", "dali")
        fn, types = require("nvidia.dali.fn", "dali"), dali.types
        # Without a device nothing of CUDA is loaded.
        pipeline = dali.Pipeline(1, self._threads, self._device_id, prefetch_queue_depth=1)
        with pipeline:
            device = "cpu" if self._device_id is None else "mixed"
            x = fn.experimental.inputs.video(name="clip", device=device, sequence_length=PIECE)
            x = fn.resize(x, size=list(self.size), interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(x)
        pipeline.build()
        return pipeline


def clip_decoder(
    backend: Backend, size: tuple[int, int], *, threads: int = 1, device_id: int | None = None
) -> tuple[ClipDecoder, str]:
    """What decodes clips, and one line that says so.

    Args:
        backend: as in ``data.dali_images.image_decoder``.
        size: as in :class:`DaliClips`, like all that follows.
        threads: see there.
        device_id: see there.

    Raises:
        MissingExtraError: DALI was asked for and is not installed.
        ValueError: there is no such backend.
    """

    def dali() -> ClipDecoder:
        return DaliClips(size, threads=threads, device_id=device_id)

    def reference(path: Path) -> Iterator[Picture]:
        return decode_clip(path, size)

    if device_id is None:
        by_dali = "clips in VP9 and MJPEG are decoded by DALI on the CPU, others by PyAV and PyTorch"
    else:
        by_dali = (
            f"clips in H.264, HEVC, AV1, VP9 and MJPEG are decoded by DALI on CUDA device {device_id}, others by PyAV "
            "and PyTorch"
        )
    return chosen(backend, dali, by_dali, reference, "clips are decoded by PyAV and PyTorch")
