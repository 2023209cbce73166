import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from nemo_prune.scoring.similarity import _ssim, ms_ssim, noise_difference, pairwise, scales_for


def _pair(side: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(side)
    a = torch.rand(3, 4, side, side, generator=generator)
    b = (a + noise * torch.rand(a.shape, generator=generator)).clamp(0, 1)
    return a, b


@pytest.mark.parametrize(("side", "scales"), [(32, 2), (64, 3), (128, 3), (96, 3)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0])
def test_equals_torchmetrics(side: int, scales: int, noise: float) -> None:
    a, b = _pair(side, noise)
    expected = multiscale_structural_similarity_index_measure(
        a, b, kernel_size=11, sigma=1.5, betas=(0.99 / scales,) * scales, data_range=1.0,
        reduction="none",
    )  # fmt: skip
    assert scales_for(side) == scales
    torch.testing.assert_close(ms_ssim(a, b), expected, atol=2e-5, rtol=1e-4)


def test_each_pixel_equals_scikit_image() -> None:
    a, b = _pair(32, 0.3)
    _, expected = structural_similarity(
        a[0].numpy(), b[0].numpy(), channel_axis=0, data_range=1.0, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    found, _ = _ssim(a[:1], b[:1])
    inside = slice(5, -5)  # at the border the two reflect differently
    torch.testing.assert_close(
        found[0, :, inside, inside],
        torch.from_numpy(expected)[:, inside, inside].float(),
        atol=1e-4, rtol=1e-3,
    )  # fmt: skip


def test_pairwise_is_ms_ssim_of_every_pair() -> None:
    a, _ = _pair(32, 0)
    scores = pairwise(a)
    assert scores.diagonal().tolist() == [-1, -1, -1]
    assert torch.equal(scores, scores.T)
    assert scores[0, 2] == pytest.approx(float(ms_ssim(a[:1], a[2:])[0]), abs=1e-6)


def test_noise_difference_fills_zero_to_one_in_each_channel() -> None:
    noise, latents = torch.randn(2, 4, 16, 16).half(), torch.randn(2, 4, 16, 16).half()
    difference = noise_difference(noise, latents)
    assert difference.dtype == torch.float32
    assert torch.equal(difference.amin(dim=(2, 3)), torch.zeros(2, 4))
    assert torch.equal(difference.amax(dim=(2, 3)), torch.ones(2, 4))


def test_flat_and_broken_differences() -> None:
    flat = torch.zeros(1, 4, 16, 16)
    assert torch.equal(noise_difference(flat, flat), flat)
    broken = flat.clone()
    broken[0, 0, 3, 3] = torch.nan
    assert ms_ssim(noise_difference(broken, flat), flat).isnan().all()


def test_pictures_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the window"):
        scales_for(10)
    with pytest.raises(ValueError, match="different shapes"):
        ms_ssim(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 32, 32))
