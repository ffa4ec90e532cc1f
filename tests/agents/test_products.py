"""How many matrix products one update takes: as many as the formulas need, counted by hand, and no more.

Products and convolutions are all that costs on a large machine, and compilers leave equal ones as they are: what is
evaluated twice in an agent runs twice. By hand, for two hidden layers: a forward pass of the policy takes 4 (mean and
log std apart), of critics or grasp critic 3; a backward pass one for each layer's weights and one for each layer's
input, without the first's where nothing trained lies before it.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from serl_fast.engine import Engine
from tests.equivalence.agents import CAMERAS, SIDE, STATE, FrozenTrunk

WIDTH = 32
HIDDEN = {"hidden_widths": (WIDTH, WIDTH)}
PLAIN = {**HIDDEN, "proprioception_dim": None}
ACTOR, CRITIC = 4, 3  # products of a forward pass
CRITIC_BACK = 2 * CRITIC - 1  # without the first layer's input
ACTOR_BACK = 2 * ACTOR - 1
STATE_STEP = ACTOR + CRITIC + CRITIC + CRITIC_BACK  # a'(s'), target, Q(s, a), its gradient
GRASP_STEP = 3 * CRITIC + CRITIC_BACK  # online and target at s', online at s
ACTOR_STEP = ACTOR + CRITIC + CRITIC + ACTOR_BACK  # a(s), Q, dQ/da without a product for the critics' weights
ENCODER = 2 * len(CAMERAS) + 1  # pooling and dense layer of each camera, the state's dense layer
DROPPED = len(CAMERAS)  # the same with a mask on the pooled features: the dense layers again
# Every layer's weights; between pooling and dense layer there is an input to take a gradient for.
ENCODER_BACK = ENCODER + len(CAMERAS)
# At s, at s' with and without dropout, the target's at s'; then both critics' first layers have an input that is
# trained. The trunk is one more.
PIXEL_STEP = 3 * ENCODER + DROPPED + ENCODER_BACK + STATE_STEP + GRASP_STEP + 2 + 1

CASES = {
    "sac": (lambda: sac(STATE, 7, config=SACConfig(**PLAIN)), STATE_STEP, ACTOR_STEP),
    "redq": (lambda: sac(STATE, 7, config=SACConfig.redq(**HIDDEN)), STATE_STEP, ACTOR_STEP),
    "hybrid": (lambda: hybrid_sac(STATE, 1, config=SACConfig(**PLAIN)), STATE_STEP + GRASP_STEP, ACTOR_STEP),
    "pixels": (
        lambda: hybrid_sac(STATE, 1, CAMERAS, SACConfig(**HIDDEN), trunk=FrozenTrunk()),
        PIXEL_STEP,
        ENCODER + DROPPED + ACTOR_STEP,
    ),
}


class Products(TorchDispatchMode):
    """Counts products and convolutions, and their FLOPs, by operation."""

    def __init__(self):
        super().__init__()
        self.counts, self.flops = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.counts[func._overloadpacket.__name__] += 1
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def batch_of(size, cameras):
    def observe():
        images = {key: torch.zeros(size, SIDE, SIDE, 3, dtype=torch.uint8) for key in cameras}
        return {"state": torch.randn(size, STATE), **images}

    return {
        "observations": observe(),
        "next_observations": observe(),
        "actions": torch.rand(size, 7),
        "rewards": torch.rand(size),
        "discounts": torch.ones(size),
        "grasp_penalty": torch.zeros(size),
    }


def counted(engine, batch, with_actor):
    with Products() as products:
        engine.update(batch, with_actor)
    return products


@pytest.mark.parametrize("name", list(CASES))
def test_an_update_takes_the_fewest_products(name):
    build, critics, actor = CASES[name]
    engine, batch = Engine(build()), batch_of(4, CAMERAS if name == "pixels" else ())
    assert counted(engine, batch, False).counts.total() == critics
    assert counted(engine, batch, True).counts.total() == critics + actor


def test_of_ten_target_critics_two_are_evaluated():
    """In FLOPs: the target's pass is a fifth of one over all ten."""
    flops = {}
    for kept in (2, 10):
        engine = Engine(sac(STATE, 7, config=SACConfig.redq(**HIDDEN, critic_subsample_size=kept)))
        flops[kept] = counted(engine, batch_of(4, ()), False).flops
    one_member = 2 * 4 * ((STATE + 7) * WIDTH + WIDTH * WIDTH + WIDTH)
    assert flops[10] - flops[2] == 8 * one_member


def test_a_compiler_is_given_as_many():
    """The traced graph that the compiler gets; it was seen to drop none of them."""
    from torch._dynamo.backends.common import aot_autograd

    build, critics, _ = CASES["pixels"]
    agent, found = build(), []

    def count(graph, inputs):
        found.append(sum(getattr(n.target, "_overloadpacket", None) in flop_registry for n in graph.graph.nodes))
        return graph

    noise = agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))
    (objective,) = agent.critic_step
    parameters = [p for name in objective.trains for p in agent.networks[name].parameters() if p.requires_grad]

    def gradients(batch):
        with torch.no_grad():
            prepared = agent.prepare(agent.networks, batch, noise)
        return torch.autograd.grad(objective.loss(agent.networks, prepared, noise).value, parameters)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(gradients, backend=aot_autograd(fw_compiler=count), fullgraph=True)(batch_of(4, CAMERAS))
    assert found == [critics]


def test_in_a_block_the_policy_is_asked_once_for_all_updates():
    engine = Engine(sac(STATE, 7, config=SACConfig(**PLAIN)))
    with Products() as products:
        engine.update_block(batch_of(4 * 5, ()), updates=5)
    assert products.counts.total() == ACTOR + 5 * (STATE_STEP - ACTOR) + ACTOR_STEP


def test_in_a_block_the_trunk_runs_once_over_every_camera_and_both_observations_of_all_updates():
    engine, seen = Engine(CASES["pixels"][0]()), []
    engine.agent.networks["encoder"].trunk.register_forward_hook(lambda module, given, _: seen.append(given[0].shape))
    engine.update_block(batch_of(2 * 3, CAMERAS), updates=3)
    assert seen == [(len(CAMERAS), 2 * 2 * 3, SIDE, SIDE, 3)]
