"""The losses against slow loops written from the equations, closed forms, and wrong shapes."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from trainer import losses
from trainer.msssim import LOCAL, ms_ssim


def similarity(x: Tensor, y: Tensor) -> Tensor:
    return ms_ssim(x, y, window=LOCAL.window, weights=LOCAL.weights, data_range=1.0)


def slow_contrastive(
    z1: Tensor, z2: Tensor, t: float, strong: list[int] | None, symmetric: bool
) -> float:
    """Eq. 2, anchor by anchor; negatives are all rows, or those of the same class where given."""
    rows = [*z1.double().tolist(), *z2.double().tolist()]
    n = len(z1)

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))

    terms = []
    for i in range(2 * n if symmetric else n):
        positive = (i + n) % (2 * n)
        total = 0.0
        for k in range(2 * n):
            if k == i or (strong is not None and strong[k % n] != strong[i % n]):
                continue
            total += math.exp(cosine(rows[i], rows[k]) / t)
        terms.append(-math.log(math.exp(cosine(rows[i], rows[positive]) / t) / total))
    return sum(terms) / len(terms)


def two_views(n: int = 6, dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(n, dim, generator=generator)
    return z1, z1 + 0.5 * torch.randn(n, dim, generator=generator)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_contrastive_is_eq_2_summed_by_hand(symmetric: bool, temperature: float) -> None:
    z1, z2 = two_views()
    loss = losses.contrastive(z1, z2, temperature=temperature, symmetric=symmetric)
    slow = slow_contrastive(z1, z2, temperature, None, symmetric)
    assert loss.item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_contrastive_within_a_strong_class_leaves_the_other_classes_out(symmetric: bool) -> None:
    z1, z2 = two_views()
    strong = [0, 1, 0, 2, 1, 0]
    loss = losses.contrastive(
        z1,
        z2,
        temperature=0.2,
        strong=torch.tensor(strong),
        negatives="same_strong",
        symmetric=symmetric,
    )
    assert loss.item() == pytest.approx(slow_contrastive(z1, z2, 0.2, strong, symmetric), rel=1e-5)


def test_contrastive_of_equal_projections_is_the_log_of_the_candidates() -> None:
    z = torch.ones(7, 3)
    assert losses.contrastive(z, z, temperature=0.2).item() == pytest.approx(math.log(13))


def test_an_item_alone_in_its_class_has_nothing_to_be_told_from() -> None:
    z1, z2 = (z.requires_grad_() for z in two_views(3))
    strong = torch.tensor([0, 1, 2])
    loss = losses.contrastive(z1, z2, temperature=0.2, strong=strong, negatives="same_strong")
    loss.backward()
    assert loss.item() == 0
    assert z1.grad is not None and torch.equal(z1.grad, torch.zeros_like(z1))


def test_contrastive_does_not_see_the_length_of_a_projection() -> None:
    z1, z2 = two_views()
    lengths = torch.linspace(0.1, 9, len(z1))[:, None]
    torch.testing.assert_close(
        losses.contrastive(z1 * lengths, z2, temperature=0.2),
        losses.contrastive(z1, z2, temperature=0.2),
    )


def test_contrastive_anchors_are_the_first_views_unless_symmetric() -> None:
    z1, z2 = two_views()
    there = losses.contrastive(z1, z2, temperature=0.2)
    back = losses.contrastive(z2, z1, temperature=0.2)
    assert there.item() != pytest.approx(back.item(), rel=1e-4)
    both = losses.contrastive(z1, z2, temperature=0.2, symmetric=True)
    torch.testing.assert_close(both, (there + back) / 2)


def test_a_step_against_the_gradient_brings_positives_closer() -> None:
    z1, z2 = (z.requires_grad_() for z in two_views())
    before = torch.cosine_similarity(z1, z2).mean()
    losses.contrastive(z1, z2, temperature=0.2).backward()
    assert z1.grad is not None and z2.grad is not None
    after = torch.cosine_similarity(z1 - 0.5 * z1.grad, z2 - 0.5 * z2.grad).mean()
    assert after > before


def test_contrastive_is_the_same_under_autocast() -> None:
    z1, z2 = two_views(64, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = losses.contrastive(z1, z2, temperature=0.2)
    assert low.dtype == torch.float32
    assert torch.equal(low, losses.contrastive(z1, z2, temperature=0.2))


def test_view_labels_follow_views_stacked_one_after_the_other() -> None:
    """Interleaved labels would give row 1 (item 1, first view) the label of item 0."""
    strong = torch.tensor([3, 1, 0])
    items = torch.arange(3)
    rows = torch.cat([items, items])
    assert torch.equal(losses.view_labels(strong), strong[rows])


def test_classification_falls_to_zero_for_right_labels_and_not_for_shuffled_ones() -> None:
    strong = torch.tensor([0, 1, 2, 3])
    logits = 50 * torch.nn.functional.one_hot(torch.cat([strong, strong])).float()
    labels = losses.view_labels(strong)
    assert losses.augmentation_classification(logits, labels).item() == pytest.approx(0, abs=1e-6)
    interleaved = strong.repeat_interleave(2)
    assert losses.augmentation_classification(logits, interleaved).item() > 10


def test_classification_is_the_mean_of_minus_log_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    expected = 0.0
    for row, label in zip(logits.tolist(), [2, 0], strict=True):
        expected -= math.log(math.exp(row[label]) / sum(map(math.exp, row))) / 2
    loss = losses.augmentation_classification(logits, torch.tensor([2, 0]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_position_classification_of_an_undecided_head_is_log_8() -> None:
    loss = losses.position_classification(torch.zeros(5, 8), torch.tensor([0, 3, 7, 1, 1]))
    assert loss.item() == pytest.approx(math.log(8))


def test_reconstruction_is_eq_6_for_one_network() -> None:
    x, x_hat = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loss = losses.reconstruction(x, x_hat, rho=0.3, data_range=2.0, ms_ssim=similarity)
    for i in range(3):
        absolute = (x[i] - x_hat[i]).abs().double().mean().item()
        alike = similarity(x[i : i + 1], x_hat[i : i + 1]).item()
        assert loss[i].item() == pytest.approx(0.3 * absolute / 2 + 0.7 * (1 - alike), rel=1e-5)


def test_a_perfect_reconstruction_costs_nothing() -> None:
    x = torch.rand(2, 3, 32, 32)
    loss = losses.reconstruction(x, x.clone(), data_range=1.0, ms_ssim=similarity)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("as_float", [False, True])
def test_invalid_pixels_change_neither_the_loss_nor_the_gradient(as_float: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x, x_hat = torch.rand(2, 2, 3, 32, 32, generator=generator)
    mask = torch.rand(2, 1, 32, 32, generator=generator) > 0.3
    valid = mask.float() if as_float else mask
    scrambled = torch.where(mask, x_hat, torch.rand(2, 3, 32, 32, generator=generator))
    loss = partial(losses.reconstruction, x, data_range=1.0, valid=valid, ms_ssim=similarity)
    assert torch.equal(loss(x_hat), loss(scrambled))
    x_hat.requires_grad_()
    loss(x_hat).sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    assert (x_hat.grad * ~mask == 0).all()
    assert (x_hat.grad * mask != 0).any()


def test_the_absolute_error_is_averaged_over_valid_pixels_only() -> None:
    x = torch.zeros(2, 3, 32, 32)
    x_hat = torch.full_like(x, 0.5)
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    valid[0, :, 8:] = False
    loss = losses.reconstruction(x, x_hat, rho=1.0, data_range=1.0, valid=valid, ms_ssim=similarity)
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.5]))


def test_an_image_with_no_valid_pixel_costs_nothing() -> None:
    x, x_hat = torch.rand(2, 1, 3, 32, 32)
    valid = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    loss = losses.reconstruction(x, x_hat, data_range=1.0, valid=valid, ms_ssim=similarity)
    torch.testing.assert_close(loss, torch.zeros(1), atol=1e-6, rtol=0)


def test_gaussian_score_is_the_squared_distance_over_the_spread() -> None:
    z = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
    score = losses.gaussian_score(z, torch.tensor([1.0, 2.0]), torch.tensor(5.0))
    torch.testing.assert_close(score, torch.tensor([0.0, 5.0]))


def test_gaussian_score_ranks_what_the_likelihood_no_longer_tells_apart() -> None:
    z = torch.tensor([[5.0], [6.0]])
    score = losses.gaussian_score(z, torch.zeros(1), 1.0)
    assert (1 - torch.exp(-score)).unique().numel() == 1
    assert score[1] > score[0]


def test_gaussian_loss_is_one_minus_the_likelihood() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    loss = losses.gaussian_loss(z, torch.zeros(2), 2.0)
    assert loss.item() == pytest.approx((0 + 1 - math.exp(-1)) / 2)


def test_the_centre_keeps_away_from_zero_on_its_own_side() -> None:
    z = torch.tensor([[0.04, -0.02, 0.0, 2.0, -0.5], [0.06, -0.04, 0.0, 4.0, -0.7]])
    centre = losses.estimate_centre(z)
    torch.testing.assert_close(centre, torch.tensor([0.1, -0.1, 0.0, 3.0, -0.6]))


def test_the_spread_is_a_mean_squared_distance_of_at_least_one() -> None:
    z = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert losses.estimate_spread(z, torch.zeros(2)).item() == pytest.approx(5.0)
    assert losses.estimate_spread(0.1 * z, torch.zeros(2)).item() == 1.0


def test_interpolation_mixes_with_the_reversed_batch() -> None:
    z = torch.tensor([[0.0], [10.0], [20.0], [40.0]])
    mixed = losses.interpolate(z, torch.tensor([0.0, 0.5, 0.25, 1.0]))
    torch.testing.assert_close(mixed, torch.tensor([[40.0], [15.0], [12.5], [40.0]]))


def test_the_critic_is_to_know_each_alpha_and_not_their_mean() -> None:
    alpha = torch.tensor([0.0, 0.5])
    quiet = torch.zeros(2)
    assert losses.critic_loss(alpha, alpha, quiet).item() == 0
    mean = torch.full((2,), 0.25)
    assert losses.critic_loss(mean, alpha, quiet).item() == pytest.approx(0.0625)
    assert losses.critic_loss(alpha, alpha, quiet + 2).item() == pytest.approx(4.0)


def test_the_interpolation_regulariser_is_the_mean_square() -> None:
    assert losses.interpolation_regulariser(torch.tensor([3.0, -1.0])).item() == pytest.approx(5)


N4, N41 = torch.zeros(4), torch.zeros(4, 1)
INTEGERS = torch.zeros(4, dtype=torch.long)
IMAGES = torch.zeros(4, 3, 32, 32)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: losses.critic_loss(N4, N41, N4), "alpha"),
        (lambda: losses.critic_loss(N41, N4, N4), "pred_mix"),
        (lambda: losses.critic_loss(N4, N4, N41), "pred_reg"),
        (lambda: losses.interpolation_regulariser(N41), "pred_mix"),
        (lambda: losses.interpolate(torch.zeros(4, 2), N41), "alpha"),
        (lambda: losses.interpolate(N4, N4), "z must"),
        (lambda: losses.contrastive(N41, torch.zeros(3, 1), temperature=1.0), "z1 and z2"),
        (lambda: losses.contrastive(N41, N41, temperature=0.0), "temperature"),
        (
            lambda: losses.contrastive(N41, N41, temperature=1.0, negatives="same_strong"),
            "needs strong",
        ),
        (
            lambda: losses.contrastive(N41, N41, temperature=1.0, negatives="all"),
            "negatives must be",
        ),
        (lambda: losses.augmentation_classification(torch.zeros(8, 4), INTEGERS), "labels"),
        (lambda: losses.position_classification(torch.zeros(4, 4), INTEGERS), "logits"),
        (lambda: losses.gaussian_score(N41, torch.zeros(2), 1.0), "centre"),
        (lambda: losses.gaussian_score(N41, torch.zeros(1), torch.ones(1)), "spread"),
        (lambda: losses.estimate_centre(torch.zeros(0, 3)), "M > 0"),
        (
            lambda: losses.reconstruction(IMAGES, IMAGES[:1], data_range=1.0, ms_ssim=similarity),
            "x_hat",
        ),
        (
            lambda: losses.reconstruction(
                IMAGES, IMAGES, data_range=1.0, valid=IMAGES[:, 0] > 0, ms_ssim=similarity
            ),
            "valid",
        ),
        (
            lambda: losses.reconstruction(
                IMAGES, IMAGES, data_range=1.0, ms_ssim=lambda x, y: torch.zeros(())
            ),
            "ms_ssim",
        ),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Callable[[], Tensor], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()
