"""Makes the msgpack files beside it with flax itself (made with jax 0.4.35, flax 0.10.1, optax 0.2.3).

``agent.msgpack`` is a training state as HIL-SERL's, saved as its checkpoints are without orbax: a SAC agent with two
critics of four units. Tensor number i of n entries holds (i + (0 .. n - 1)) / 8; its targets hold one more.
``kinds.msgpack`` has what else flax can write: bfloat16, complex numbers, scalars, an array in chunks.
"""

import shutil
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, struct, traverse_util
from flax.training import checkpoints

HERE = Path(__file__).parent
SHAPES = {
    "modules_actor/Dense_0/bias": (2,),
    "modules_actor/Dense_0/kernel": (4, 2),
    "modules_actor/Dense_1/bias": (2,),
    "modules_actor/Dense_1/kernel": (4, 2),
    "modules_actor/encoder/Dense_0/bias": (5,),
    "modules_actor/encoder/Dense_0/kernel": (3, 5),
    "modules_actor/encoder/LayerNorm_0/bias": (5,),
    "modules_actor/encoder/LayerNorm_0/scale": (5,),
    "modules_actor/network/Dense_0/bias": (4,),
    "modules_actor/network/Dense_0/kernel": (5, 4),
    "modules_actor/network/LayerNorm_0/bias": (4,),
    "modules_actor/network/LayerNorm_0/scale": (4,),
    "modules_critic/Dense_0/bias": (1,),
    "modules_critic/Dense_0/kernel": (4, 1),
    "modules_critic/network/VmapMLP_0/Dense_0/bias": (2, 4),
    "modules_critic/network/VmapMLP_0/Dense_0/kernel": (2, 7, 4),
    "modules_critic/network/VmapMLP_0/LayerNorm_0/bias": (2, 4),
    "modules_critic/network/VmapMLP_0/LayerNorm_0/scale": (2, 4),
    "modules_temperature/lagrange": (),
}


class State(struct.PyTreeNode):
    """The fields of HIL-SERL's ``JaxRLTrainState``."""

    step: int
    params: dict
    target_params: dict
    opt_states: dict
    rng: jax.Array


def tree(offset):
    leaves = {
        name: jnp.asarray((offset + i + np.arange(np.prod(shape))).reshape(shape) / 8, jnp.float32)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return traverse_util.unflatten_dict(leaves, sep="/")


def make():
    params = tree(0)
    states = {name: optax.adam(3e-4).init(params) for name in ("actor", "critic", "temperature")}
    state = State(7, params, tree(8), states, jax.random.PRNGKey(0))
    flax.config.update("flax_use_orbax_checkpointing", False)
    path = checkpoints.save_checkpoint(HERE / "made", state, step=7, overwrite=True)
    shutil.move(path, HERE / "agent.msgpack")
    (HERE / "made").rmdir()
    kinds = {
        "half": jnp.asarray([[1.5, -2.0, 0.1]], jnp.bfloat16),
        "complex": 1 + 2j,
        "scalar": np.float32(3),
        "chunked": np.arange(6, dtype=np.float32).reshape(2, 3),
        "integers": np.arange(2),
        "text": "not an array",
        "nothing": None,
    }
    serialization.MAX_CHUNK_SIZE = 8  # bytes
    (HERE / "kinds.msgpack").write_bytes(serialization.msgpack_serialize({"params": kinds}))


if __name__ == "__main__":
    make()
