"""The cost model counts what the layers do, agrees with published figures as far as it says, and names what binds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.presets import preset
from fastvicreg.profiles import cost_model as model
from fastvicreg.profiles.bench import model as table
from fastvicreg.profiles.cost_model import GPUS, Prediction, predict
from fastvicreg.profiles.layers import Product, Tower, Traced, trace


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return preset("imagenet-100ep").config


@pytest.fixture(scope="module")
def traced(config: TrainConfig) -> Traced:
    return trace(config)


def test_a_view_through_a_resnet50_is_counted_as_it_is_known(traced: Traced) -> None:
    first, second = traced.views
    assert first == second
    assert sum(product.passes * product.operations for product in first.products) == pytest.approx(24.3e9, rel=0.01)
    assert sum(moved for _, moved in first.moves) == pytest.approx(2 * 11.1e6, rel=0.01)
    kinds = [kind for kind, _ in first.moves]
    assert (kinds.count("last"), kinds.count("plain"), len(kinds)) == (16, 4, 53)
    assert traced.norms == 53
    assert traced.width == 8192
    # Three layers, two views, forward and two gradients, a product and an addition each.
    assert sum(product.passes * product.operations for product in traced.heads) == 2 * 3 * 2 * 8192 * (2048 + 2 * 8192)
    assert traced.parameters == pytest.approx(174.55e6, rel=1e-3)


@pytest.mark.parametrize(("norms", "gigabytes"), [("eager", 0.347), ("compiled", 0.254), ("fused", 0.204)])
def test_the_passes_over_a_norm_move_the_known_bytes(traced: Traced, norms: str, gigabytes: float) -> None:
    assert traced.views[0].traffic(norms) == pytest.approx(gigabytes * 1e9, rel=0.07)


def test_a_vit_is_counted_as_it_is_known(config: TrainConfig) -> None:
    """4.6 G products and additions of one image (DeiT, table 1), of which attention's own are 12 x 2 x 197^2 x 384."""
    tower = trace(replace(config, encoder=ViTConfig(arch="vit_small"))).views[0]
    assert sum(product.operations for product in tower.products) == pytest.approx(2 * 4.6e9, rel=0.01)
    assert [product.operations for product in tower.products].count(4 * 197 * 197 * 384) == 12
    kinds = [kind for kind, _ in tower.moves]
    assert (kinds.count("layer"), kinds.count("gelu"), kinds.count("residual")) == (25, 12, 24 + 1)
    assert trace(replace(config, encoder=ViTConfig(arch="vit_small"))).norms == 0


def test_a_convnext_is_counted_as_it_is_known(config: TrainConfig) -> None:
    """8.7 G products and additions of one image (ConvNeXt, table 1); 36 blocks, and 5 norms between and around them."""
    tower = trace(replace(config, encoder=ConvNeXtConfig(arch="convnext_small"))).views[0]
    assert sum(product.operations for product in tower.products) == pytest.approx(2 * 8.7e9, rel=0.01)
    kinds = [kind for kind, _ in tower.moves]
    assert (kinds.count("layer"), kinds.count("gelu"), kinds.count("residual")) == (36 + 5, 36, 36)


@pytest.mark.parametrize(
    ("preset_name", "gradients"),
    [
        ("byol-imagenet-100ep", [True, True, False, False]),
        ("moco-imagenet-200ep", [True, False]),
        ("dino-imagenet-100ep", [True] * 10 + [False] * 2),
    ],
)
def test_every_pass_that_a_method_makes_is_counted(preset_name: str, gradients: list[bool]) -> None:
    config = preset(preset_name).config
    found = trace(config)
    assert [tower.gradient for tower in found.views] == gradients
    first, last = found.views[0], found.views[-1]
    assert {product.passes for product in first.products} == {2, 3}
    if not last.gradient:
        assert {product.passes for product in last.products} == {1}
        assert sum(product.operations for product in last.products) == sum(one.operations for one in first.products)
        assert 0.2 < last.traffic("eager") / first.traffic("eager") < 0.5


def test_small_views_cost_what_their_pixels_do(config: TrainConfig) -> None:
    found = trace(preset("swav-imagenet-100ep").config)
    large, small = (sum(product.operations for product in found.views[place].products) for place in (0, 2))
    assert small / large == pytest.approx((96 / 224) ** 2, rel=0.05)
    assert found.pixels == 3 * (2 * 224**2 + 6 * 96**2)


def test_more_views_are_counted_each(config: TrainConfig, traced: Traced) -> None:
    four = trace(replace(config, data=replace(config.data, num_views=4)))
    assert [tower.gradient for tower in four.views] == [True] * 4
    assert four.pixels == 2 * traced.pixels
    assert four.parameters == traced.parameters
    gpu = model.GPUS["h100"]
    two, double = (model.predict(found, gpu, gpus=8, batch_size=1024) for found in (traced, four))
    for part in ("convolutions", "norms", "head", "augment"):
        assert getattr(double, part) == pytest.approx(2 * getattr(two, part))
    assert double.update == two.update


def test_an_image_is_decoded_once_and_cut_for_each_view(traced: Traced) -> None:
    form = table.FORMS["originals"]
    assert table.core_rate(form, traced.pixels) == form.images_per_core_s
    assert table.core_rate(form, traced.pixels // 4) == form.images_per_core_s  # smaller views: not measured
    slower = table.core_rate(form, 2 * traced.pixels)
    assert 1 / slower - 1 / form.images_per_core_s == pytest.approx(2 * table.CROP_SECONDS)


def test_a_smaller_form_takes_fewer_cores_and_pixels_more_of_the_disk() -> None:
    (original,), (q90,), (small,), (raw,) = (table.run(form=form) for form in table.FORMS)
    assert original["cores"] > q90["cores"] > small["cores"] > 4 * raw["cores"]
    assert small["gb_s"] < q90["gb_s"] < original["gb_s"] < raw["gb_s"]
    for form, known in table.FORMS.items():
        assert known.images_per_core_s == pytest.approx(_measured(form), rel=2e-3)


def _measured(form: str) -> float:
    """Of the committed results that the table names."""
    results = Path(table.__file__).parents[1] / "results" / "cpu"
    rows = json.loads((results / "loader.json").read_text())["rows"]
    one = {row["pipeline"]: row["images_per_cpu_s"] for row in rows if row["workers"] == 1}
    gained = {row["form"]: row["images_per_core_s"] for row in json.loads((results / "forms.json").read_text())["rows"]}
    if form == "originals":
        return one["native"]
    name = {"beton-500": "500 px, q90", "beton-400": "400 px, q90", "raw-256": "256 px, pixels"}[form]
    return one["ffcv"] * gained[name] / gained["500 px, q90"]


def test_a_second_branch_takes_one_view(config: TrainConfig) -> None:
    method: Any = config.method
    found = trace(replace(config, method=replace(method, branch_b=("vit_small",))))
    of_resnet, of_vit = ({kind for kind, _ in tower.moves} for tower in found.views)
    assert of_resnet == {"relu", "plain", "last"}
    assert "layer" in of_vit
    assert found.parameters > 190e6


def test_it_is_within_a_tenth_of_nvidias_own_figure(traced: Traced) -> None:
    """DeepLearningExamples, ResNet-50 v1.5 in mixed precision on one A100-80: 2,470 images/s of one view."""
    assert 2 / sum(model.image_seconds(traced, GPUS["a100-80"], "eager")) == pytest.approx(2470, rel=0.1)


def test_parts_grow_with_what_they_depend_on(traced: Traced) -> None:
    gpu = GPUS["h100"]
    one, two = (predict(traced, gpu, gpus=1, batch_size=batch) for batch in (256, 512))
    assert two.convolutions == pytest.approx(2 * one.convolutions)
    assert two.norms == pytest.approx(2 * one.norms)
    assert two.update == one.update
    assert one.collectives == 0
    eight, sixteen = (predict(traced, gpu, gpus=count, batch_size=2048) for count in (8, 16))
    assert eight.convolutions == pytest.approx(2 * sixteen.convolutions)
    assert sixteen.collectives > eight.collectives > 0
    joint = predict(traced, gpu, gpus=8, batch_size=2048, joint=True)
    assert eight.collectives - joint.collectives == pytest.approx(2 * 53 * model.LATENCY)


def test_a_ring_moves_twice_the_bytes_but_for_its_own_share() -> None:
    gpu = GPUS["h100"]
    few = replace_traced(parameters=10**9)
    alone = predict(few, gpu, gpus=2, batch_size=2)
    link, size = gpu.link * model.COLLECTIVE, 4 * 10**9
    hidden = model.OVERLAPPED * model.BACKWARD * (alone.convolutions + alone.norms + alone.head - loss(gpu))
    gathered = model.LATENCY + 4 * 2 * 2 * 8 / link
    assert alone.collectives == pytest.approx(size / link - hidden + gathered, rel=1e-6)


def loss(gpu: model.GPU) -> float:
    return 4 * 2 * 1 * 2 * 8 / (gpu.flops * model.COMPUTE)


def replace_traced(parameters: int) -> Traced:
    tower = Tower(gradient=True, products=[Product(1e6, 1e3, 3)], moves=[])
    return Traced((tower, tower), (), parameters, 8, 6)


@pytest.mark.parametrize(
    ("parts", "bound"),
    [
        ((9, 1, 1, 1, 1, 1, 0), "convolutions"),
        ((1, 9, 1, 1, 1, 1, 0), "norms"),
        ((1, 1, 9, 1, 1, 1, 0), "expander and loss"),
        ((1, 1, 1, 9, 1, 1, 0), "update"),
        ((1, 1, 1, 1, 1, 9, 13), "comm"),
        ((9, 1, 1, 1, 1, 1, 15), "loader"),
    ],
)
def test_the_bound_is_the_largest_part_or_the_loader_that_is_waited_for(parts: tuple[float, ...], bound: str) -> None:
    found = Prediction(8, 32, *parts)
    assert found.bound == bound
    assert found.step == max(sum(parts[:6]), parts[6])


@pytest.mark.slow
def test_the_batch_that_fits_is_the_largest_that_the_memory_check_passes(config: TrainConfig) -> None:
    gpu = GPUS["h100"]
    fits = model.largest_batch(config, gpu)
    sizes = [model.predict_memory(config, batch, precision="bf16").total for batch in (fits, fits + 8)]
    assert sizes[0] <= model.SPARE * gpu.memory < sizes[1]
    recomputed = replace(config, run=replace(config.run, activations="recompute"))
    assert model.largest_batch(recomputed, gpu) > 1.4 * fits
    assert model.largest_batch(config, replace(gpu, memory=1e9)) == 0


@pytest.mark.slow
def test_the_command_tells_when_cores_hold_it_back_and_takes_their_measured_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, out = tmp_path / "loader.json", tmp_path / "model.json"
    rows = [{"pipeline": "native", "workers": n, "images_per_cpu_s": 100.0 * n, "mean_bytes": 5e4} for n in (2, 1)]
    measured.write_text(json.dumps({"rows": rows}))
    arguments = ["bench", "model", "--gpus", "1..2", "--batch-per-gpu", "256", "--json", str(out)]
    assert main([*arguments, "--loader", str(measured), "--cores", "3"]) == 0
    assert "predicted, not measured" in capsys.readouterr().out
    first, second = json.loads(out.read_text())["rows"]
    assert (first["gpus"], second["gpus"], second["batch"]) == (1, 2, 512)
    assert first["bound"] == "loader"
    assert first["images_per_s"] == pytest.approx(300)
    assert first["gb_s"] == pytest.approx(300 * 5e4 / 1e9)
    assert first["cores"] > 3
    assert main([*arguments, "--cores", "64"]) == 0
    free = json.loads(out.read_text())["rows"][0]
    assert free["bound"] == "norms"
    parts = [free[name] for name in ("conv_ms", "norm_ms", "comm_ms", "other_ms")]
    assert free["step_ms"] == pytest.approx(sum(parts))
    assert free["epoch_min"] == pytest.approx(1_281_167 / free["images_per_s"] / 60)


def test_too_large_a_batch_is_bound_by_memory() -> None:
    (row,) = table.run(gpu="rtx3090", gpus=("1",), batch_size=2048)
    assert row["bound"] == "memory"
    assert 0 < row["fits"] < 2048


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpus", "eight"], "--gpus eight: give numbers"),
        (["--gpus", "8..2"], "--gpus 8..2: give numbers"),
        (["--gpus", "3"], "a total batch of 2048 does not divide"),
        (["--form", "original"], "did you mean 'originals'"),
        (["--loader", "nowhere.json"], "--loader nowhere.json: cannot be read"),
        (["--batch-size", "0"], "--batch-size 0: give 2 or more"),
        (["--preset", "imagenet"], "unknown preset"),
        (["--arch", "vit_smal"], "did you mean 'vit_small'"),
        (["--arch", "vit_small", "patch=x"], "--arch vit_small patch=x: patch cannot be 'x'"),
        (["--arch", "vit_small", "--norms", "fused"], "--norms fused are kernels of batch norms"),
        (["--arch", "gru"], "--arch gru takes text, and the model counts images"),
        (["--branch-b", "resnet18_1d"], "--branch-b resnet18_1d takes waveforms, and the model counts images"),
        (["--arch", "vit_small", "depth=100000"], "--depth 100000 is too large: give 256 blocks or fewer."),
        (["--branch-b", "vit_tiny", "depth=257"], "--depth 257 is too large: give 256 blocks or fewer."),
        (["--image-size", "1000000000"], "--image-size 1000000000: give 16384 or less."),
        (["--num-views", "100"], "--num-views 100: give 2 to 64"),
        (["--num-views", "4", "--preset", "byol-imagenet-100ep"], "--num-views 4: --method byol takes two views"),
        (["--arch", "resnet50", "width=99999999"], "as large as ResNetConfig(arch='resnet50', width=99999999"),
        (["--preset", "dino-imagenet-100ep", "--branch-b", "resnet18"], "--branch-b resnet18: dino trains one network"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "model", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_file_without_the_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"rows": [{"pipeline": "dali"}]}')
    with pytest.raises(UserError, match="no row of the pipeline native"):
        table.measured(str(tmp_path / "other.json"), "originals")


def test_doublings_and_numbers_stand_together() -> None:
    assert table.counts(("1..8", "6", "2")) == [1, 2, 4, 8, 6]
    assert math.isinf(Prediction(1, 1, 0, 0, 0, 0, 0, 0, math.inf).step)
