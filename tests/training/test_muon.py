import pytest
import torch
from torch import nn

from mmgpt.training.muon import MATCH_ADAMW, MOMENTUM, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    out = orthogonalise(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3
    assert values.min() > 0.3
    # The nearest orthogonal matrix is u vh; in the iteration's own basis ours is diagonal.
    inside = u.mT @ out @ vh.mT
    torch.testing.assert_close(inside, torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2)), atol=1e-3, rtol=0)


def test_matrices_of_a_shape_are_stepped_as_each_alone():
    torch.manual_seed(0)
    matrices = torch.randn(4, 6, 10)
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone)


def test_the_first_step_is_the_orthogonalised_gradient_and_decay():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 2, 3, 3))
    before, weight.grad = weight.detach().clone(), torch.randn(6, 2, 3, 3)
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5, "matrices": True}]
    Muon(groups, lr=1.0, betas=(0.9, 0.99)).step()
    direction = orthogonalise(weight.grad.flatten(1)[None])[0].view_as(weight)  # its scale does not matter
    expected = before * (1 - 0.1 * 0.5) - 0.1 * MATCH_ADAMW * 18**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_other_groups_are_stepped_by_adamw_exactly():
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    matrix = nn.Parameter(torch.randn(4, 4))
    settings = {"lr": 0.1, "weight_decay": 0.2}
    muon = Muon(
        [{"params": [matrix], "matrices": True, **settings}, {"params": [ours], "matrices": False, **settings}],
        lr=1.0,
        betas=(0.9, 0.99),
    )
    adamw = torch.optim.AdamW([{"params": [theirs], **settings}], betas=(0.9, 0.99))
    for _ in range(5):
        gradient = torch.randn(5)
        ours.grad, theirs.grad, matrix.grad = gradient.clone(), gradient.clone(), torch.randn(4, 4)
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_momentum_is_part_of_the_saved_state():
    torch.manual_seed(0)

    def make():
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(4, 6))
        return weight, Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0, "matrices": True}], 1.0, (0.9, 0.99))

    gradients = torch.randn(4, 4, 6)
    weight, muon = make()
    for i, gradient in enumerate(gradients):
        if i == 2:
            kept, state = weight.detach().clone(), muon.state_dict()
            saved = {key: value.clone() for key, value in state["state"][0].items()}
        weight.grad = gradient
        muon.step()
    resumed, again = make()
    resumed.data.copy_(kept)
    again.load_state_dict({**state, "state": {0: saved}})
    for gradient in gradients[2:]:
        resumed.grad = gradient
        again.step()
    torch.testing.assert_close(resumed, weight, rtol=0, atol=0)
    assert 0 < MOMENTUM < 1
