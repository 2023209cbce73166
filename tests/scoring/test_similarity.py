import subprocess
import sys

import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from nemo_prune.options import Criterion
from nemo_prune.scoring.criterion import (
    best_pairs,
    best_pairs_of_each,
    scores_against,
    scores_of_each,
)
from nemo_prune.scoring.similarity import (
    _ssim,
    ms_ssim,
    ms_ssim_pairs,
    noise_difference,
    pairwise,
    scales_for,
)


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


# --- the unit of the published thresholds ---

# torchmetrics 1.3.2's multiscale_structural_similarity_index_measure(a, b, kernel_size=11, sigma=1.5,
# betas=(0.33,) * 3, data_range=None, reduction="none") of what `_frozen_pair` draws.
FROZEN = {
    (0, 1, "noisy"): [0.746796],
    (0, 1, "unrelated"): [0.0],
    (0, 1, "same"): [1.0],
    (1, 3, "noisy"): [0.478297, 0.474335, 0.477239],
    (1, 3, "unrelated"): [0.038298, 0.017565, 0.0],
    (2, 5, "noisy"): [0.313244, 0.316664, 0.31224, 0.308923, 0.321985],
    (2, 5, "unrelated"): [0.018779, 0.008691, 0.028909, 0.019208, 0.025497],
}


def _frozen_pair(seed: int, count: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(count, 4, 64, 64, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(a, 5, 1, 2)
    noisy = (smooth + 0.2 * (1 + seed) * torch.rand(a.shape, generator=generator)).clamp(0, 1)
    other = torch.rand(a.shape, generator=generator)
    return {"noisy": (smooth, noisy), "unrelated": (a, other), "same": (a, a)}[kind]


@pytest.mark.parametrize(("seed", "count", "kind"), FROZEN)
def test_the_published_unit_is_that_of_torchmetrics_1_3_2(seed: int, count: int, kind: str) -> None:
    a, b = _frozen_pair(seed, count, kind)
    expected = FROZEN[seed, count, kind]
    assert ms_ssim(a, b, published=True).tolist() == pytest.approx(expected, abs=1e-4)
    if kind == "noisy":  # and another unit than today's
        assert (ms_ssim(a, b) - torch.tensor(expected)).abs().max() > 1e-3


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_published_pairs_are_compared_together(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """The range of values is that of all that is compared, also where pairs are taken in parts."""
    a, b = _frozen_pair(1, 3, "noisy")
    a, b = torch.cat([7 * a[:1], a]), torch.cat([b, 7 * b[:1]])  # what no pair names does not count
    monkeypatch.setattr("nemo_prune.scoring.similarity._PIXELS_AT_ONCE", at_once * a[0].numel())
    together = ms_ssim_pairs(a, b, torch.arange(1, 4), torch.arange(3), published=True)
    assert together.tolist() == pytest.approx(FROZEN[1, 3, "noisy"], abs=1e-4)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_prompts_scored_together_score_as_alone(published: bool, criterion: Criterion) -> None:
    """Also in the published unit, which depends on what is compared together."""
    generator = torch.Generator().manual_seed(0)
    asked = []
    for seeds, pruned in (([0, 1, 2], [1]), ([4, 5], [5, 4]), ([0, 3, 9, 7], [9, 0, 7])):
        spread = 1.0 + len(asked)
        known = {seed: spread * torch.rand(4, 48, 48, generator=generator) for seed in seeds}
        asked.append(({seed: 0.9 * known[seed] ** 2 for seed in pruned}, known))
    together = scores_of_each(asked, criterion, published=published)
    pairs = best_pairs_of_each([known for _, known in asked], published=published)
    for (pruned, known), scores, best in zip(asked, together, pairs, strict=True):
        alone = scores_against(pruned, known, criterion, published=published)
        assert scores == pytest.approx(alone, abs=2e-5)
        assert list(scores) == list(pruned)
        assert best == pytest.approx(best_pairs(known, published=published), abs=2e-5)


def test_what_is_not_a_number_stays_so_beside_others() -> None:
    broken = {0: torch.full((4, 32, 32), torch.nan), 1: torch.rand(4, 32, 32), 2: torch.rand(4, 32, 32)}
    found = best_pairs_of_each([{i: torch.rand(4, 32, 32) for i in range(2)}, broken])
    assert all(score == score for score in found[0].values())
    assert all(score != score for score in found[1].values())


# --- many pairs ---


def test_pairs_taken_in_parts_are_those_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _pair(32, 0.3)
    left, right = torch.tensor([0, 2, 1, 2, 0]), torch.tensor([1, 1, 1, 0, 0])
    expected = ms_ssim(a[left], b[right])
    for at_once in (1, 2, 4, 100):
        monkeypatch.setattr("nemo_prune.scoring.similarity._PIXELS_AT_ONCE", at_once * a[0].numel())
        torch.testing.assert_close(ms_ssim_pairs(a, b, left, right), expected, atol=1e-6, rtol=0)
    none = torch.zeros(0, dtype=torch.int64)
    assert ms_ssim_pairs(a, b, none, none).shape == (0,)


_MEASURING = """
import sys, torch
from nemo_prune.scoring.criterion import best_pairs
torch.set_num_threads(1)
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
differences = {i: torch.rand(4, 128, 128) for i in range(30)}
best_pairs({i: differences[i] for i in range(2)}, published=sys.argv[1] == "published")
before = peak()
best_pairs(differences, published=sys.argv[1] == "published")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("unit", ["current", "published"])
def test_memory_is_bounded_whatever_the_number_of_seeds(unit: str) -> None:
    """435 pairs of SDXL's 128x128 latents took 2.6 GB at once."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURING, unit], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 600
