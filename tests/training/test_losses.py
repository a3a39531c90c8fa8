"""The torch losses against those of the outcome models."""

import numpy as np
import pytest
from helpers.outcomes import votes

from p2l_plugins.outcomes import FAMILIES, nll_gradients

torch = pytest.importorskip("torch")

from p2l_plugins.training.losses import vote_losses  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_losses_are_the_same(family):
    a, b, y, raw_eta = votes(family, scale=20)
    tensors = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (a, b)]
    eta = None if raw_eta is None else torch.tensor(raw_eta, dtype=torch.float32)
    losses = vote_losses(family, *tensors, torch.tensor(y), eta)
    expected, d_a, _, _ = nll_gradients(family, a, b, y, raw_eta)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=2e-5, atol=2e-5)
    losses.sum().backward()
    np.testing.assert_allclose(tensors[0].grad.numpy(), d_a, atol=2e-4)
