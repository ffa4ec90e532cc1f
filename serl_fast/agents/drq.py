"""DrQ (Yarats et al. 2021): SAC from pixels whose batches are cropped at random, with a trained image encoder.

The crop is part of every agent here that has cameras; what makes this one DrQ is the configuration
(``SACConfig.drq``): a small CNN for each camera, trained by the critics, and ten critics of which two make the target.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Agent


def drq(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str],
    config: SACConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a DrQ agent; arguments as in ``sac.sac``, and at least one camera.

    Raises:
        ValueError: there is no camera.
    """
    if not image_keys:
        raise ValueError("image_keys is empty; DrQ learns from cameras (use sac() for states)")
    return sac(state_dim, action_dim, image_keys, config or SACConfig.drq(), trunk=trunk)
