"""The default agents (``compat=None``) beside the recordings, where the two updates mean the same.

Compared: the critic's loss, target and gradient (without entropy backup, which ours discounts), the grasp critic's, the
actor's loss and its gradient in the policy, the temperature's loss when ours is given the original's second sample at
the next observations, and actions. Everything else differs on purpose, see ``serl_fast.agents.sac``.
"""

import pytest
import torch

from serl_fast.agents.hybrid_sac import grasp_targets
from serl_fast.agents.sac import critic_targets
from serl_fast.interop.flax_names import agent_leaves
from tests.parity.fixture import Fixture
from tests.parity.library import GOLDEN, HERE, Library, folders, kind_of
from tests.parity.parameters import gradients_of
from tests.parity.recorded import batch_of, build_agent, noise_of


def recorded_agents():
    found = {path.name: path for path in (*folders(GOLDEN), *folders(HERE / "data"))}
    return [path for name, path in sorted(found.items()) if name.startswith("agent_small")]


class Case:
    """A default agent with the recorded parameters and batch; comparisons are noted in the recording."""

    def __init__(self, path):
        self.fixture = Fixture.read(path)
        assert kind_of(self.fixture) == "agent"
        self.agent, self.config = build_agent(self.fixture, Library([]), "batch", compat=None)
        batch = batch_of(self.fixture, "batch", self.fixture.config["discount"])
        self.noise = noise_of(self.fixture, "noise")
        with torch.no_grad():
            self.batch = self.agent.prepare(self.agent.networks, batch, self.noise)

    def loss(self, name, batch=None, noise=None):
        """(loss with gradient, metrics) of one objective."""
        (objective,) = (o for o in self.agent.objectives if o.name == name)
        return objective.loss(self.agent.networks, batch or self.batch, noise or self.noise)

    def compare_gradients(self, value, recorded, networks):
        """The gradient of ``value`` in ``networks`` with what is recorded of the loss ``recorded``."""
        trained = [p for name in networks for p in self.agent.networks[name].parameters()]
        ours = gradients_of(value, agent_leaves(self.agent.networks), trained)
        for path in self.fixture.below(f"grads/{recorded}"):
            if path in ours and bool(ours[path].any()):
                self.fixture.compare(f"grads/{recorded}/{path}", ours[path], "gradient")

    def agrees(self):
        beyond = [(c.name, c.error) for c in self.fixture.comparisons if not c.ok]
        return bool(self.fixture.comparisons) and not beyond


@pytest.fixture(params=recorded_agents(), ids=lambda path: path.name)
def case(request):
    return Case(request.param)


def test_critic(case):
    if case.config.backup_entropy:
        pytest.skip("this recording backs the entropy up, which the original does not discount and the default does")
    value, _ = case.loss("critic")
    case.fixture.compare("critic/loss", value, "loss")
    targets = critic_targets(case.config)(case.agent.networks, case.batch, case.noise)
    case.fixture.compare("critic/target_q", targets, "value")
    case.compare_gradients(value, "critic", ["critic", "encoder"])
    assert case.agrees()


def test_grasp_critic(case):
    if "grasp_critic" not in case.agent.networks:
        pytest.skip("this recording has no gripper")
    value, _ = case.loss("grasp_critic")
    case.fixture.compare("grasp_critic/loss", value, "loss")
    case.fixture.compare("grasp_critic/target_q", grasp_targets(case.agent.networks, case.batch)[0], "value")
    case.compare_gradients(value, "grasp_critic", ["grasp_critic", "encoder"])
    assert case.agrees()


def test_actor(case):
    value, metrics = case.loss("actor")
    terms = torch.from_numpy(case.fixture.recorded("actor/qs"))
    case.fixture.compare("actor/loss", metrics["loss"], "loss", terms=terms)
    case.compare_gradients(value, "actor", ["actor"])
    assert case.agrees()


def test_temperature(case):
    batch = {**case.batch, "observations": case.batch["next_observations"]}
    value, metrics = case.loss("actor", batch, {"actions": case.noise["temperature_actions"]})
    log_probs = torch.from_numpy(case.fixture.recorded("temperature/next_log_probs"))
    temperature = case.agent.networks["temperature"]().detach()
    case.fixture.compare("temperature/loss", metrics["temperature_loss"], "loss", terms=temperature * log_probs)
    case.compare_gradients(value, "temperature", ["temperature"])
    assert case.agrees()


def test_actions(case):
    observations, noise = case.batch["observations"], case.fixture.given("sample_actions/batched/eps")
    with torch.no_grad():
        for name, chosen in (("argmax", None), ("sampled", noise)):
            actions = case.agent.policy(case.agent.networks, observations, chosen)
            case.fixture.compare(f"sample_actions/batched/{name}", actions, "value")
    assert case.agrees()
