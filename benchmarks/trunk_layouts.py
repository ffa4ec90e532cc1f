"""The frozen ResNet-10 in NCHW beside channels_last, eager and compiled: python -m benchmarks.trunk_layouts.

The trunk's weights are channels_last and images come as NHWC bytes, so nothing is transposed in that layout; this says
whether that pays. Figures of a machine that others use mean nothing: the table says how busy it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.interleaved import interleaved
from benchmarks.machine import busy_cores, machine, markdown, quiet_or_caution
from serl_fast.networks.resnet10 import ResNet10

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def variants(batch: int) -> dict[str, Callable[[], Tensor]]:
    """Passes over one batch of 128 x 128 images by name, warmed up and compiled."""
    images = torch.randint(0, 256, (batch, 128, 128, 3), dtype=torch.uint8)
    found: dict[str, Callable[[], Tensor]] = {}
    for name, layout in LAYOUTS.items():
        torch.manual_seed(0)
        trunk = ResNet10().to(memory_format=layout)  # type: ignore[call-overload]

        def encode(trunk: ResNet10 = trunk, layout: torch.memory_format = layout) -> Tensor:
            with torch.no_grad():
                return trunk.features(trunk.normalise(images).contiguous(memory_format=layout))

        found[f"eager {name}"] = encode
        found[f"compiled {name}"] = torch.compile(encode, fullgraph=True, dynamic=False)
    expected = next(iter(found.values()))()
    for function in found.values():
        for _ in range(2):
            torch.testing.assert_close(function(), expected, rtol=1e-3, atol=1e-3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    block, busy = machine(), [busy_cores()]
    names = [f"{execution} {layout}" for execution in ("eager", "compiled") for layout in LAYOUTS]
    rows = ["| threads | batch | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for batch in arguments.batch:
            torch._dynamo.reset()
            rates = interleaved(variants(batch), arguments.rounds, arguments.seconds)
            per_second = [f"{batch * rates[name].median:.0f}" for name in names]
            rows.append(f"| {threads} | {batch} | " + " | ".join(per_second) + " |")
            print(rows[-1], flush=True)
    busy.append(busy_cores())
    print("\nImages per second, median of the rounds.\n")
    print("\n".join(rows), "\n\n" + markdown(block | quiet_or_caution(busy)))


if __name__ == "__main__":
    main()
