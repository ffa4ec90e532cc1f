"""Which tensors are 16 bits wide and which are not, under autocast on the CPU."""

import dataclasses
import re

import pytest
import torch

from serl_fast.agents import hybrid_sac
from serl_fast.agents.sac import critic_targets
from serl_fast.agents.sac_config import SACConfig
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine import config as config_module
from serl_fast.networks.classifier import RewardClassifier

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIG = SACConfig(hidden_widths=(16, 16), backup_entropy=True)


def batch():
    generator = torch.Generator().manual_seed(1)
    observe = {"state": torch.randn(8, 5, generator=generator)}
    return {
        "observations": observe,
        "next_observations": observe,
        "actions": torch.rand(8, 7, generator=generator),
        "rewards": torch.rand(8, generator=generator),
        "discounts": torch.rand(8, generator=generator),
        "grasp_penalty": torch.zeros(8),
    }


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_products_are_half_values_targets_and_log_probabilities_are_not(precision):
    agent = hybrid_sac.hybrid_sac(5, 1, config=CONFIG)
    networks, data = agent.networks, batch()
    noise = agent.draw_noise(torch.Generator(), 8, torch.device("cpu"))
    hidden = []
    networks["actor"].trunk.layers[1].register_forward_hook(lambda module, inputs, output: hidden.append(output.dtype))
    networks["critic"].layers[1].register_forward_hook(lambda module, inputs, output: hidden.append(output.dtype))
    with EngineConfig(precision=precision).autocast(torch.device("cpu")):
        features = networks["encoder"](data["observations"])
        distribution = networks["actor"](features)
        actions, log_probs = distribution.sample(noise["actions"])
        found = {
            "mean": distribution.mean,
            "std": distribution.std,
            "actions": actions,
            "log_probs": log_probs,
            "log_prob": distribution.log_prob(data["actions"][:, :6]),
            "q": networks["critic"](features, actions),
            "grasp_q": networks["grasp_critic"](features),
            "targets": critic_targets(CONFIG)(networks, data, noise),
            "grasp_targets": hybrid_sac.grasp_targets(networks, data)[0],
            "temperature": networks["temperature"](),
            "classifier": RewardClassifier(("front",), encoder="small", image_size=(32, 32))(
                {"front": torch.zeros(2, 32, 32, 3, dtype=torch.uint8)}
            ),
        }
        losses = {o.name: o.loss(networks, data, noise) for o in agent.critic_step + agent.actor_step}
    assert hidden
    assert set(hidden) == {PRECISIONS[precision]}
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(found, torch.float32)
    for name, loss in losses.items():
        tensors = [loss.value, *loss.metrics.values()]
        assert [tensor.dtype for tensor in tensors] == [torch.float32] * len(tensors), name


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_weights_moments_targets_and_metrics_stay_float32(precision):
    engine = Engine(hybrid_sac.hybrid_sac(5, 1, config=CONFIG), EngineConfig(precision=precision))
    metrics = engine.update(batch())
    assert {tensor.dtype for tensor in engine.agent.networks.state_dict().values()} == {torch.float32}
    assert {tensor.dtype for adam in engine.adam.values() for tensor in adam.tensors()} == {torch.float32}
    assert {tensor.dtype for tensor in metrics.values()} == {torch.float32}


def test_log_probabilities_of_a_narrow_policy_keep_their_digits():
    """In half precision the standard deviation itself, and so its logarithm, would have two to three digits."""
    agent = hybrid_sac.hybrid_sac(5, 1, config=CONFIG)
    with torch.no_grad():
        agent.networks["actor"].log_std.bias.fill_(-7.123)
        agent.networks["actor"].log_std.weight.zero_()
    with EngineConfig(precision="bfloat16").autocast(torch.device("cpu")):
        distribution = agent.networks["actor"](agent.networks["encoder"](batch()["observations"]))
    rounded = torch.tensor(-7.123).bfloat16().float()
    torch.testing.assert_close(distribution.std.log(), torch.full((8, 6), rounded.item()), rtol=1e-6, atol=1e-6)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_an_engine_in_tf32_leaves_another_ones_float32_alone(monkeypatch):
    monkeypatch.setattr(config_module, "TF32_DEVICES", ("cpu",))
    monkeypatch.setattr(EngineConfig, "check", lambda self, device: None)  # tf32 needs a GPU, its flags do not
    before, seen = flags(), []

    def watched(networks, observations, noise):
        seen.append(flags())
        return observations["state"]

    def engine(precision):
        agent = hybrid_sac.hybrid_sac(5, 1, config=CONFIG)
        prepare = agent.prepare

        def watching(networks, batch, noise):
            seen.append(flags())
            return prepare(networks, batch, noise)

        return Engine(dataclasses.replace(agent, prepare=watching, policy=watched), EngineConfig(precision=precision))

    try:
        exact, fast = engine("float32"), engine("tf32")
        data = batch()
        for each in (exact, fast, exact, fast):
            each.update(data)
            each.act(data["observations"])
        assert seen == ([(False, False)] * 2 + [(True, True)] * 2) * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("precision", "has", "said"),
    [
        ("float32", False, None),
        ("float16", True, None),
        ("float16", None, None),  # torch does not say
        ("float16", False, "precision 'float16': this CPU has no instructions .* tens of times .* choose 'float32'"),
        ("bfloat16", False, "precision 'bfloat16': this CPU has no instructions .* slower .* choose 'float32'"),
        ("bfloat16", True, None),
    ],
)
def test_a_precision_that_the_cpu_computes_slowly_is_remarked_on(precision, has, said, monkeypatch):
    monkeypatch.setattr(config_module, "computes_in", lambda dtype: has)
    remark = EngineConfig(precision=precision).remark(torch.device("cpu"))
    assert remark == said if said is None else re.fullmatch(said, remark)
    assert EngineConfig(precision=precision).remark(torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "onednn", "expected"),
    [
        ("x86_64", False, False, True, (False, True)),  # oneDNN converts where there is AVX-512 alone
        ("AMD64", False, True, False, (True, False)),
        ("x86_64", True, False, False, (True, False)),
        ("aarch64", False, False, True, (True, True)),
        ("aarch64", True, True, False, (False, False)),
    ],
)
def test_what_a_cpu_computes_in(machine, avx512, amx, onednn, expected, monkeypatch):
    monkeypatch.setattr(config_module.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: onednn, raising=False)
    assert tuple(map(config_module.computes_in, (torch.bfloat16, torch.float16))) == expected
