import pytest
import torch

from nasa.losses import clip_hinge, denoising_loss, regression_loss, vsd_gradient, vsd_loss

TOLERANCE = 1e-12


def draw_normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gradient_of_the_vsd_loss_is_divided_by_the_number_of_elements():
    x0, gradient = draw_normal(2, 4, 3, 3).requires_grad_(), draw_normal(2, 4, 3, 3, seed=1)
    loss = vsd_loss(x0, gradient)
    loss.backward()
    torch.testing.assert_close(loss.detach(), 0.5 * (gradient**2).mean(), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(x0.grad, gradient / x0.numel(), atol=TOLERANCE, rtol=0)


def test_gradient_descent_moves_x0_to_the_teacher_s_prediction():
    """The teachers predict the student's x0 and another image; half a step halves their distance."""
    student_x0, teacher_x0, eps = (
        draw_normal(1, 4, 3, 3).requires_grad_(),
        draw_normal(1, 4, 3, 3, seed=1),
        draw_normal(1, 4, 3, 3),
    )
    alpha = sigma = torch.tensor(0.5, dtype=torch.float64).sqrt()
    x_t = alpha * student_x0.detach() + sigma * eps
    gradient = vsd_gradient((x_t - alpha * teacher_x0) / sigma, eps, sigma)
    vsd_loss(student_x0, gradient).backward()
    stepped = student_x0.detach() - student_x0.numel() * student_x0.grad
    halfway = (student_x0.detach() + teacher_x0) / 2
    torch.testing.assert_close(stepped, halfway, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("distance", "best"), [("squared", 0.3), ("pseudo_huber", 0.0)])
def test_the_regression_is_smallest_at_the_mean_or_the_median_of_the_pairs(distance, best):
    """Seven of ten pairs that the student cannot tell apart have one image, and three another."""
    one, other = draw_normal(1, 4, 3, 3), draw_normal(1, 4, 3, 3, seed=1)
    targets = torch.cat([one] * 7 + [other] * 3)
    mixtures = [number / 10 for number in range(11)]
    losses = [
        regression_loss((one + part * (other - one)).expand(10, -1, -1, -1), targets, distance) for part in mixtures
    ]
    assert mixtures[int(torch.stack(losses).argmin())] == best


def test_equal_teachers_give_a_zero_gradient():
    x0, eps, sigma = (
        draw_normal(2, 4, 3, 3).requires_grad_(),
        draw_normal(2, 4, 3, 3, seed=1),
        draw_normal(2, 1, 1, 1, seed=2).abs(),
    )
    vsd_loss(x0, vsd_gradient(eps, eps.clone(), sigma)).backward()
    assert not x0.grad.any()


def test_vsd_gradient_is_weighted_by_each_sample_s_sigma_squared():
    teacher, lora, sigma = (
        draw_normal(2, 1, 2, 2),
        draw_normal(2, 1, 2, 2, seed=1),
        torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1),
    )
    actual = vsd_gradient(teacher, lora, sigma)
    torch.testing.assert_close(actual[0], 0.25 * (teacher[0] - lora[0]))
    torch.testing.assert_close(actual[1], 4.0 * (teacher[1] - lora[1]))


def make_features(*cosines):
    """Return image features of various norms with these cosines to the text features (1, 0)."""
    rows = [[c * n, (1 - c * c) ** 0.5 * n] for n, c in enumerate(cosines, start=1)]
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_the_hinge_is_taken_per_sample_and_pulls_images_towards_their_texts():
    images, texts = make_features(0.9, 0.1), torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    loss = clip_hinge(images, texts, 0.37)
    loss.backward()
    # Over the mean cosine, 0.5, the hinge would be zero.
    torch.testing.assert_close(loss.detach(), torch.tensor(0.27 / 2, dtype=torch.float64), atol=TOLERANCE, rtol=0)
    assert not images.grad[0].any()
    assert images.grad[1, 0] < 0 < images.grad[1, 1]


@pytest.mark.parametrize("shape", [(3, 4, 2, 2)])
def test_the_denoising_loss_is_weighted_per_image(shape):
    output, target, alpha = (
        draw_normal(*shape).requires_grad_(),
        draw_normal(*shape, seed=1),
        torch.tensor([0.1, 0.5, 0.9]),
    )
    loss = denoising_loss(output, target, alpha.double().reshape(3, 1, 1, 1) ** 2)
    loss.backward()
    expected = 0.0
    for b in range(3):
        expected += alpha[b].double() ** 2 * ((output[b] - target[b]) ** 2).sum() / output.numel()
    slope = 2 * alpha.double().reshape(3, 1, 1, 1) ** 2 * (output - target) / output.numel()
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.grad, slope.detach(), atol=TOLERANCE, rtol=0)


def test_pseudo_huber_moves_every_image_equally_far_along_its_gradient():
    x0, gradient = draw_normal(3, 4, 3, 3).requires_grad_(), draw_normal(3, 4, 3, 3, seed=1)
    gradient[1] *= 100
    gradient[2] *= 1e-6
    loss = vsd_loss(x0, gradient, "pseudo_huber")
    loss.backward()
    size = x0[0].numel()
    c = 0.00054 * size**0.5
    lengths = gradient.flatten(1).norm(dim=1)
    expected = ((lengths**2 + c**2).sqrt() - c).mean() / size**0.5
    torch.testing.assert_close(loss.detach(), expected, atol=TOLERANCE, rtol=0)
    moved = x0.grad.flatten(1).norm(dim=1) * len(x0) * size**0.5
    torch.testing.assert_close(moved[:2], torch.ones(2).double(), atol=1e-5, rtol=0)
    assert moved[2] < 0.01  # far below c the loss is squared
    cosine = torch.nn.functional.cosine_similarity(x0.grad.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3).double(), atol=1e-9, rtol=0)
