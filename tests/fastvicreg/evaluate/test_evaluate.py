"""Evaluation against answers known beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.errors import UserError
from fastvicreg.evaluate import knn_predict, linear_predict
from fastvicreg.evaluate.features import evaluation_resize, extract
from fastvicreg.evaluate.linear import few_labels
from fastvicreg.evaluate.online import OnlineEvaluation
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.train.assemble import assemble

VIEWS = (torch.ops.aten.slice.Tensor, torch.ops.aten.select.int, torch.ops.aten.unbind.int)
"""Operators that make no memory."""


def test_knn_weighs_neighbours_by_their_similarity() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    query = torch.tensor([[0.8, 0.6]])  # similarities .8, .6, .6, -.8
    # exp(.8/.07) > 2 exp(.6/.07), but exp(.8/1) < 2 exp(.6/1): the temperature decides.
    assert knn_predict(bank, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert knn_predict(bank, labels, query, k=3, temperature=1.0).tolist() == [1]
    assert knn_predict(bank, labels, 5 * query, k=1).tolist() == [0]


def test_knn_equals_a_loop_over_queries() -> None:
    torch.manual_seed(0)
    bank, query, labels = torch.randn(300, 8), torch.randn(1500, 8), torch.randint(0, 5, (300,))
    expected = []
    for row in F.normalize(query, dim=1):
        votes = [0.0] * 5
        similar = F.normalize(bank, dim=1) @ row
        for index in similar.argsort(descending=True)[:20].tolist():
            votes[int(labels[index])] += float((similar[index].double() / 0.07).exp())
        expected.append(max(range(5), key=votes.__getitem__))
    assert knn_predict(bank, labels, query).tolist() == expected


def test_knn_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="bank of 3"):
        knn_predict(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64), torch.randn(1, 2))
    with pytest.raises(ValueError, match="-1"):
        knn_predict(torch.randn(3, 2), torch.full((3,), -1), torch.randn(1, 2), k=1)
    with pytest.raises(ValueError, match="temperature=0"):
        knn_predict(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64), torch.randn(1, 2), k=1, temperature=0)


def test_knn_at_a_low_temperature_is_the_nearest_neighbour() -> None:
    torch.manual_seed(0)
    bank, query, labels = torch.randn(50, 4), torch.randn(40, 4), torch.randint(0, 5, (50,))
    assert torch.equal(knn_predict(bank, labels, query, temperature=1e-4), knn_predict(bank, labels, query, k=1))


def test_linear_separates_what_a_plane_separates_and_nothing_else() -> None:
    torch.manual_seed(0)
    x, far = torch.randn(400, 6) * torch.tensor([1, 1, 1, 1, 1, 1e-3]) + 50, torch.randn(200, 6)
    labels = (x[:, 5] > 50).long()  # the smallest of the directions: standardising must find it
    assert (linear_predict(x, labels, x) == labels).float().mean() > 0.97
    noise = torch.randint(0, 2, (400,))
    assert (linear_predict(x, noise, far) == torch.randint(0, 2, (200,))).float().mean() < 0.65


def test_few_labels_takes_as_many_of_each_class() -> None:
    labels = torch.arange(60) % 3
    chosen = few_labels(labels, 5)
    assert len(chosen.unique()) == 15
    assert labels[chosen].bincount().tolist() == [5, 5, 5]
    assert not torch.equal(chosen, few_labels(labels, 5, seed=1))
    with pytest.raises(ValueError, match="21 labels a class asked for, but class 0 has 20"):
        few_labels(labels, 21)


def test_features_are_in_the_sources_order_normalised_and_whole(make_folder) -> None:
    source = open_source(make_folder(train=11, val=0, side=16))
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    features, labels, faults = extract(encoder, source, image_size=8, batch_size=4)
    assert faults == 0
    assert features.shape == (11, 3 * 8 * 8)
    assert labels.tolist() == [source.label(i) for i in range(11)]
    assert encoder.training
    for index in range(11):
        image = Image.fromarray(decode_rgb(source.encoded(index)))
        scale = 8 / min(image.size)
        resized = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = round((resized.width - 8) / 2), round((resized.height - 8) / 2)
        pixels = torch.tensor(np.array(resized.crop((left, top, left + 8, top + 8)))).float() / 255
        expected = ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).flatten()
        torch.testing.assert_close(features[index], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_a_run_s_evaluation_computes_in_the_run_s_precision_and_keeps_fp32(
    make_folder, precision: Any, dtype: torch.dtype
) -> None:
    seen = set[torch.dtype]()

    def noted(module: nn.Module, _: Any, features: torch.Tensor) -> None:
        if not module.training:
            seen.add(features.dtype)

    config = tiny(make_folder(train=8, val=4))
    config = replace(config, run=replace(config.run, precision=precision, epochs=1))
    run = assemble(config)
    try:
        run.encoder.register_forward_hook(noted)
        values = OnlineEvaluation.build(run, config)(run.encoder)
        assert seen == {dtype}
        assert 0 <= values["knn"] <= 100
        features = extract(run.encoder, run.data.train, image_size=16, precision=precision).features_NF
        assert features.dtype == torch.float32
    finally:
        run.engine.close()
        run.data.close()


def test_features_take_their_own_memory_and_a_batch_s_beside(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ImageNet 10 GB: joined at the end, and looked at all at once, they would take 30 of a GPU's."""

    class Largest(TorchDispatchMode):
        """Values of the tensors that operators make, the empty ones apart."""

        values = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and func not in (torch.ops.aten.new_empty.default, *VIEWS):
                self.values = max(self.values, result.numel())
            return result

    monkeypatch.setattr("fastvicreg.evaluate.features.CHECKED", 4)
    source = open_source(make_folder(train=24, val=0, side=16))
    with Largest() as largest:
        found = extract(nn.Flatten(), source, image_size=8, batch_size=4)
    assert found.features_NF.shape == (24, 192)
    assert largest.values <= 4 * 192


def test_small_images_are_not_enlarged_for_evaluation() -> None:
    assert evaluation_resize(224) == 256
    assert evaluation_resize(32) == 32


def test_features_that_are_not_finite_are_refused_by_the_tensor_that_spoils_them(make_folder) -> None:
    source = open_source(make_folder() / "train")
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    encoder.get_buffer("bn1.running_var").fill_(torch.nan)
    with pytest.raises(UserError, match=r"24 of 24 images are not finite: bn1.running_var of the encoder is not"):
        extract(encoder, source, image_size=16)
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    with torch.no_grad():
        encoder.conv1.weight.fill_(3e38)
    with pytest.raises(UserError, match=r"not finite, class0/000.jpg first, though"):
        extract(encoder, source, image_size=16)
