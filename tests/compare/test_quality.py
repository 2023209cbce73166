"""Distances of ordinary pictures, against plain statements of their definitions."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from nemo_prune.compare.quality import Extractor, check_package, cmmd, open_extractors
from nemo_prune.errors import OptionError

CPU = torch.device("cpu")


class Features(torch.nn.Module):
    """As the published Inception: classes, unless it is asked for features."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return small if return_features else small[:, :1]


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def script(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))  # type: ignore[no-untyped-call]
    return path


def drawn(seed: int, count: int, low: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(low, 256, (24, 20, 3), dtype=np.uint8) for _ in range(count)]


def test_fid_and_kid(tmp_path: Path) -> None:
    (inception,) = open_extractors(script(Features(), tmp_path / "i.pt"), None, CPU)
    a, b = inception.features(drawn(0, 40)), inception.features(drawn(1, 35, 80))
    assert a.shape == (40, 12), "features, not classes, in batches of 32"
    found = inception.distances(a, b)
    x, y = a.numpy(), b.numpy()
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    fid = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert found["fid"] == pytest.approx(fid, rel=1e-4)
    assert found == inception.distances(a, b), "the subsets are the same every time"
    same = inception.distances(a[:20], a[20:])
    assert found["kid"] > abs(same["kid"])
    assert len(inception.used["sha256"]) == 64


def test_cmmd_is_as_published() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, size=(9, 5))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, y)]

    def mean_kernel(a: Any, b: Any) -> float:
        return float(np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]))

    a, b = unit
    expected = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-6)


def test_what_is_no_inception_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"not a model")
    for path, said in ((other, "is not a TorchScript file"), (tmp_path / "none", "no such file"),
                       (script(Flat(), tmp_path / "f.pt"), "does not describe pictures")):  # fmt: skip
        with pytest.raises(OptionError) as caught:
            open_extractors(path, None, CPU)
        assert str(caught.value).startswith(f"inception {path}: {said}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(OptionError, match=r"pip install 'nemo-prune\[compare\]'"):
        check_package()
    with pytest.raises(OptionError, match="torchmetrics"):
        open_extractors(None, tmp_path, CPU)
    assert open_extractors(None, None, CPU) == ()


def test_features_of_any_number_of_pictures() -> None:
    sizes: list[int] = []

    def describe(pictures: Any) -> torch.Tensor:
        sizes.append(len(pictures))
        return torch.ones(len(pictures), 3)

    assert Extractor("clip", describe, {}).features(drawn(0, 65)).shape == (65, 3)
    assert sizes == [32, 32, 1]
