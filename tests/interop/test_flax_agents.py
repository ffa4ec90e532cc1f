"""Whole agents from the original's trees and back: bit-equal, complete, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.interop.flax_agents import export_params, has_trunk, load_params, with_trunk
from serl_fast.interop.flax_settings import infer_settings
from serl_fast.interop.flax_trees import ParameterTrees, read_trees, trees_of, write_trees
from serl_fast.interop.policies import build
from serl_fast.networks.classifier import RewardClassifier

pytest.importorskip("msgpack", reason="msgpack is not installed (extra interop)")

DATA = Path(__file__).parent / "data"  # written by flax 0.10.1, see make_flax_files.py
TINY = SACConfig(hidden_widths=(8, 6), proprioception_dim=5)
COMPAT = SACConfig(hidden_widths=(8, 6), proprioception_dim=5, compat="hil_serl")


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(np.asarray(a[k], np.float32), b[k]) for k in a)


def state_of(agent):
    return {key: value.clone() for key, value in agent.networks.state_dict().items()}


def unchanged(agent, before):
    return all(torch.equal(value, before[key]) for key, value in agent.networks.state_dict().items())


RECORDED = [
    "agent_small_sac",
    "agent_small_single",
    "agent_small_dual",
    "agent_small_single_T2",
    "agent_small_sac_redq",
    "agent_256_sac",
    "utd_dual",
]


@pytest.mark.parametrize("suffix", [".npz", ".msgpack"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_agent_comes_back_bit_equal(recorded, tmp_path, name, suffix):
    trees = recorded(name)
    agent = build(infer_settings(trees))
    report = load_params(agent.networks, trees)
    assert len(report.placed) == len(trees.params) + len(trees.target_params)
    assert not report.unread
    written = read_trees(write_trees(tmp_path / f"a{suffix}", export_params(agent.networks)))
    assert same(trees.params, written.params)
    assert same(trees.target_params or trees.params, written.target_params)


@pytest.mark.parametrize("name", ["agent_small_sac", "agent_small_dual", "agent_small_sac_redq"])
def test_separate_critics_all_take_the_recorded_head(recorded, name):
    trees = recorded(name)
    agent = build(infer_settings(trees, compat=None))
    report = load_params(agent.networks, trees)
    head = torch.from_numpy(trees.params["modules_critic/Dense_0/kernel"].astype(np.float32))
    assert all(torch.equal(member, head) for member in agent.networks["critic"].head.weight)
    assert {path.split("/")[1] for path in report.unread} == {"modules_actor", "modules_temperature"}
    assert same(trees.params, export_params(agent.networks).params)  # as long as the heads agree
    with torch.no_grad():
        agent.networks["critic"].head.weight[0] += 1
    with pytest.raises(ValueError, match="last layers of their own"):
        export_params(agent.networks)


def test_an_agent_with_cameras_comes_back_bit_equal(recorded):
    heads = {}
    for path, value in recorded("encoder_heads").params.items():
        camera, _, rest = path.partition("/")
        heads[f"modules_actor/encoder/encoder_{camera}/{rest}"] = value
    given = recorded("agent_pixels")
    trees = ParameterTrees(given.params | heads, heads | given.target_params)
    assert not has_trunk(trees)
    trunk = recorded("resnet10", "resnet10_params.pkl.xz").params
    trees = with_trunk(trees, trunk, ["wrist_1", "side"])
    agent = build(infer_settings(trees, ["wrist_1", "side"]))
    load_params(agent.networks, trees)
    encoder = agent.networks["encoder"]
    assert encoder.image_keys == ("wrist_1", "side")
    kernel = heads["modules_actor/encoder/encoder_side/SpatialLearnedEmbeddings_0/kernel"]
    assert torch.equal(encoder.heads[1].embeddings.kernel, torch.from_numpy(kernel.astype(np.float32)))
    assert not any(parameter.requires_grad for parameter in encoder.trunk.parameters())
    exported = export_params(agent.networks)
    assert same(trees.params, exported.params)
    trunks = [path for path in exported.params if "pretrained_encoder" in path]
    assert len(trunks) == 36
    assert set(exported.target_params) == set(exported.params)  # with the trunk, as in the original
    # A whole tree of the original loads: its second copy of the trunk has nothing to say.
    report = load_params(agent.networks, exported)
    assert sorted(report.unread) == sorted(f"target_params/{path}" for path in trunks)


@pytest.mark.parametrize(("name", "classes"), [("binary", 1), ("three classes", 3)])
def test_a_classifier_comes_back_bit_equal(name, classes):
    torch.manual_seed(0)
    first = RewardClassifier(("left/wrist", "side"), classes=classes, hidden=16)
    trees = export_params(first)
    assert not trees.target_params
    settings = infer_settings(trees, ["left/wrist", "side"])
    assert settings["config"]["classes"] == classes
    second = build(settings).networks
    report = load_params(second, trees)
    assert len(report.placed) == len(list(first.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("agent", ["bc", "vice"])
def test_bc_and_vice_come_back_bit_equal(agent):
    torch.manual_seed(0)
    settings = {"image_keys": ["side"], "config": {"image_size": (32, 32)}, "algorithm": agent}
    if agent == "bc":
        settings |= {"state_dim": 3, "action_dim": 7}
    first = build(settings)
    trees = export_params(first.networks)
    second = build(infer_settings(trees))
    assert second.settings["algorithm"] == agent
    load_params(second.networks, trees)
    assert same(trees.params, export_params(second.networks).params)


def test_sizes_are_read_off_the_shapes():
    config = SACConfig(
        hidden_widths=(8, 6),
        layer_norm=False,
        std_parameterization="uniform",
        critic_ensemble_size=3,
        proprioception_dim=5,
        image_size=(64, 32),
        frames=2,
        compat="hil_serl",
    )
    agent = hybrid_sac(7, 2, ("b", "a"), config)
    settings = infer_settings(export_params(agent.networks), ["b", "a"])
    assert build(settings).settings == agent.settings


@pytest.mark.parametrize(
    ("encoder", "pooling", "told"),
    [
        ("small", None, True),
        ("small", "spatial_embeddings", True),
        ("small", "spatial_softmax", True),
        ("small", "none", True),
        ("small", "max", False),
        ("resnet", None, True),
        ("resnet", "spatial_softmax", True),
        ("resnet", "none", True),
        ("resnet", "average", False),
        ("resnet-pretrained", "max", False),
    ],
)
def test_poolings_are_read_where_shapes_tell_them(encoder, pooling, told):
    config = SACConfig(
        hidden_widths=(8,),
        encoder=encoder,
        pooling=pooling,
        image_size=(64, 96),
        proprioception_dim=4,
        compat="hil_serl",
    )
    agent = sac(3, 2, ("a",), config)
    trees, given = export_params(agent.networks), {"image_size": (64, 96)}
    if not told and encoder != "small":
        with pytest.raises(ValueError, match="do not tell average from max: give pooling"):
            infer_settings(trees, **given)
    given |= {} if told else {"pooling": pooling}
    other = build(infer_settings(trees, **given))
    assert other.settings == agent.settings
    load_params(other.networks, trees)
    assert same(trees.params, export_params(other.networks).params)


def test_frames_can_be_told():
    """Without a branch, a state as wide as a frame's features looks like a frame."""
    config = SACConfig(hidden_widths=(8,), image_size=(32, 32), proprioception_dim=None, compat="hil_serl")
    agent = sac(256, 2, ("a",), config)
    trees = export_params(agent.networks)
    assert infer_settings(trees)["config"]["frames"] == 2
    assert build(infer_settings(trees, frames=1)).settings == agent.settings


def test_compat_is_of_what_can_be_trained_differently():
    def settings(algorithm, **given):
        first = build({"image_keys": ["a"], "config": {"image_size": (32, 32)}, "algorithm": algorithm})
        return infer_settings(export_params(first.networks), **given)

    assert settings("vice")["config"]["compat"] == "hil_serl"
    assert settings("vice", compat=None)["config"]["compat"] is None
    assert "compat" not in settings("reward_classifier", compat=None)["config"]
    with pytest.raises(ValueError, match="activation, squash: not a setting of 'vice'; it has bottleneck, compat, "):
        settings("vice", activation="relu", squash=True)


def test_the_order_of_cameras_must_be_given():
    trees = export_params(sac(3, 2, ("b", "a"), SACConfig(hidden_widths=(8,), compat="hil_serl")).networks)
    with pytest.raises(ValueError, match="cameras a, b: the tree does not tell their order; give image_keys"):
        infer_settings(trees)
    with pytest.raises(ValueError, match=r"image_keys are \['a', 'c'\]; the tree has \['a', 'b'\]"):
        infer_settings(trees, ["a", "c"])
    assert infer_settings(trees, ["b", "a"])["image_keys"] == ["b", "a"]


def test_what_is_no_agent_is_named():
    with pytest.raises(ValueError, match=r"the tree holds \['conv_init'\]"):
        infer_settings({"conv_init/kernel": np.zeros((7, 7, 3, 64))})
    params = export_params(hybrid_sac(3, 1, (), COMPAT).networks).params
    del params["modules_actor/network/Dense_0/kernel"]
    with pytest.raises(ValueError, match="'modules_actor/network/Dense_0/kernel' is missing"):
        infer_settings(params)
    params = export_params(hybrid_sac(3, 1, (), COMPAT).networks).params
    with pytest.raises(ValueError, match="6 continuous actions with 4 choices"):
        infer_settings(params | {"modules_grasp_critic/Dense_0/bias": np.zeros(4)})
    with pytest.raises(ValueError, match="nothing in it"):
        infer_settings(params | {"modules_actor/encoder/Dense_0/kernel": np.zeros((2**40, 0))})


def test_every_tensor_that_does_not_fit_is_listed_and_nothing_changes():
    agent, other = sac(3, 2, (), COMPAT), sac(3, 2, (), COMPAT)
    trees, before = export_params(other.networks), state_of(agent)
    del trees.params["modules_actor/Dense_0/bias"]
    del trees.target_params["modules_temperature/lagrange"]
    trees.params["modules_critic/Dense_0/kernel"] = np.zeros((7, 1), np.float32)
    trees.params["modules_actor/Dense_1/bias"] = np.zeros(2, np.complex64)
    trees.params["modules_value/Dense_0/kernel"] = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="2 tensors are missing and 3 have no place; nothing was changed") as error:
        load_params(agent.networks, trees)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  missing   params/modules_actor/Dense_0/bias [2]",
        "  missing   target_params/modules_temperature/lagrange []",
        "  no place  params/modules_actor/Dense_1/bias [2] complex64; the network takes [2] of floats",
        "  no place  params/modules_critic/Dense_0/kernel [7, 1] float32; the network takes [6, 1] of floats",
        "  no place  params/modules_value/Dense_0/kernel [2, 3]",
    ]
    assert unchanged(agent, before)
    report = load_params(agent.networks, trees, strict=False)
    assert len(report.missing) == 2
    assert len(report.unplaced) == 3
    kept, taken = agent.networks["actor"].mean.bias, agent.networks["actor"].mean.weight
    assert torch.equal(kept, before["actor.mean.bias"])
    assert torch.equal(taken, other.networks["actor"].mean.weight)


def test_a_tree_without_targets_starts_them_at_the_parameters():
    agent, trees = sac(3, 2, (), TINY), export_params(sac(3, 2, (), COMPAT).networks)
    with torch.no_grad():
        agent.networks["target_critic"].head.bias.fill_(9)
    load_params(agent.networks, trees.params)
    for name in ("encoder", "critic"):
        online, target = agent.networks[name].state_dict(), agent.networks[f"target_{name}"].state_dict()
        assert all(torch.equal(online[key], target[key]) for key in target)


def test_a_loaded_agent_feeds_the_state_as_it_comes():
    agent = sac(3, 2, (), TINY)
    agent.networks["encoder"].normalizer.set_statistics(torch.randn(20, 3))
    load_params(agent.networks, export_params(sac(3, 2, (), COMPAT).networks))
    state = torch.randn(4, 3)
    assert torch.equal(agent.networks["encoder"].normalizer(state), state)


@pytest.mark.parametrize("latent", [5, None])
def test_a_normalised_state_is_written_into_the_layer_that_reads_it(latent):
    torch.manual_seed(0)
    config = SACConfig(hidden_widths=(8,), proprioception_dim=latent, compat="hil_serl", encoder="small")
    agent = hybrid_sac(3, 1, ("a",), config)
    states = 5 + 3 * torch.randn(50, 3)
    for name in ("encoder", "target_encoder"):
        agent.networks[name].normalizer.set_statistics(states)
    images = torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8)
    observations, actions = {"state": states[:4], "a": images}, torch.rand(4, 6)

    def outputs(networks):
        features, target = networks["encoder"](observations), networks["target_encoder"](observations)
        return [
            networks["actor"](features).mean,
            networks["critic"](features, actions),
            networks["grasp_critic"](features),
            networks["target_critic"](target, actions),
        ]

    trees = export_params(agent.networks)
    plain = build(infer_settings(trees))
    load_params(plain.networks, trees)
    for ours, theirs in zip(outputs(agent.networks), outputs(plain.networks), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_serls_layout_of_states_has_separate_heads():
    torch.manual_seed(0)
    config = SACConfig(hidden_widths=(8, 6), proprioception_dim=None, critic_ensemble_size=3)
    agent = sac(4, 2, (), config)
    trees = export_params(agent.networks, separate_heads=True)
    assert trees.params["modules_critic/Dense_0/kernel"].shape == (3, 6, 1)
    assert not any("VmapMLP_0" in path or "encoder" in path for path in trees.params)
    settings = infer_settings(trees)
    assert (settings["state_dim"], settings["config"]["compat"]) == (4, None)
    other = build(settings)
    load_params(other.networks, trees)
    assert torch.equal(other.networks["critic"].head.weight, agent.networks["critic"].head.weight)
    assert same(trees.params, export_params(other.networks, separate_heads=True).params)


def test_a_checkpoint_of_flax_becomes_an_agent():
    trees = read_trees(DATA / "agent.msgpack")
    agent = build(infer_settings(trees))
    load_params(agent.networks, trees)
    assert agent.networks["actor"].mean.weight.tolist() == [[1 / 8, 3 / 8, 5 / 8, 7 / 8], [2 / 8, 4 / 8, 6 / 8, 1]]
    assert agent.networks["temperature"].raw.item() == 18 / 8
    assert agent.networks["target_temperature"].raw.item() == 26 / 8


def test_nested_dicts_of_other_arrays_are_taken():
    source = sac(3, 2, (), COMPAT)
    nested = {"params": {}}
    for path, value in export_params(source.networks).params.items():
        inner = nested["params"]
        *parents, last = path.split("/")
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = torch.from_numpy(value)
    agent = sac(3, 2, (), COMPAT)
    load_params(agent.networks, nested)
    assert same(trees_of(nested).params, export_params(agent.networks).params)
