"""Agents' networks as plain ``torch.nn`` modules, for oracles written the way single-file implementations are."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


def sequential(linears, norms, last):
    """Linear -> LayerNorm -> ReLU for each (weight [out, in], bias), then a linear layer; weights are copied."""
    modules = []
    for index, (weight, bias) in enumerate([*linears, last]):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        modules.append(layer)
        if index < len(linears):
            if norms:
                modules.append(nn.LayerNorm(weight.shape[0], eps=1e-6))
                modules[-1].weight.data.copy_(norms[index][0])
                modules[-1].bias.data.copy_(norms[index][1])
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def from_mlp(mlp, head):
    """An ``MLP`` without dropout and a dense layer on top of it."""
    norms = [(norm.weight, norm.bias) for norm in mlp.norms if isinstance(norm, nn.LayerNorm)]
    return sequential([(layer.weight, layer.bias) for layer in mlp.layers], norms, (head.weight, head.bias))


def members(critic):
    """Every member of a ``CriticEnsemble``."""

    def dense(stacked, e):
        return stacked.weight[e].T, stacked.bias[e, 0]

    return [
        sequential(
            [dense(layer, e) for layer in critic.layers],
            [(norm.weight[e, 0], norm.bias[e, 0]) for norm in critic.norms],
            dense(critic.head, e),
        )
        for e in range(critic.members)
    ]


def value_of(network, states, actions):
    """Q of one member [B], or [B, N] for actions [B, N, A]."""
    if actions.dim() == 3:
        states = states.unsqueeze(1).expand(-1, actions.shape[1], -1)
    return network(torch.cat([states, actions], -1)).squeeze(-1)


def follow(targets, sources, rate):
    """The usual soft update."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            for a, b in zip(target.parameters(), source.parameters(), strict=True):
                a.copy_(rate * b + (1 - rate) * a)


def mse(q, y):
    """Mean squared error to a constant."""
    return F.mse_loss(q, y.detach())


def assert_same(found, expected, tolerance=2e-5):
    """Two plain networks (or lists of them) have the same parameters."""
    found = nn.ModuleList(found) if isinstance(found, list) else found
    expected = nn.ModuleList(expected) if isinstance(expected, list) else expected
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


STATE, ACTION, ROWS = 5, 3, 16


def batches(count):
    """Batches with every field that some agent takes."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    for _ in range(count):
        yield {
            "observations": {"state": normal(ROWS, STATE)},
            "next_observations": {"state": normal(ROWS, STATE)},
            "actions": torch.tanh(normal(ROWS, ACTION)),
            "next_actions": torch.tanh(normal(ROWS, ACTION)),
            "rewards": normal(ROWS),
            "mc_returns": normal(ROWS) + 1,
            "discounts": 0.99 * (normal(ROWS) > -1).float(),
        }


def recorded_noise(agent):
    """The agent, and a list that gets the noise of every update it draws."""
    drawn = []

    def draw(*arguments):
        drawn.append(agent.draw_noise(*arguments))
        return drawn[-1]

    return dataclasses.replace(agent, draw_noise=draw), drawn
