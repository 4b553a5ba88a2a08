"""Views as one batch and outputs computed again: the results of one view after another, with all kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.kernels.norm import BatchNorm, JointViews
from fastvicreg.kernels.norm.recompute import Recipe, pack, unpack
from fastvicreg.methods.heads import expander
from fastvicreg.methods.views import each_view
from fastvicreg.train.batch_norm import replace_norms


class Networks(nn.Module):
    """An encoder and an expander, as a method has them."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = resnet(arch, width=16, stem="3x3s2")
        self.expander = expander(self.encoder.features, (12, 8))
        for name, value in self.named_parameters():
            if value.ndim == 1:
                nn.init.uniform_(value, 0.5 if name.endswith("weight") else -0.5, 1)

    def forward(self, views: tuple[Tensor, ...]) -> list[Tensor]:
        return each_view(self.expander, each_view(self.encoder, views))


def made(arch: str = "resnet18", **settings: Any) -> Networks:
    return replace_norms(Networks(arch).double(), **settings)  # type: ignore[return-value]


def views(sizes: tuple[int, ...] = (16, 16)) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(6, 3, size, size, generator=generator, dtype=torch.float64) for size in sizes)


def results(networks: Any, given: tuple[Tensor, ...]) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, gradients and buffers by name."""
    outputs = networks(given)
    torch.stack([(y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() for y in outputs]).sum().backward()
    grads = {name: value.grad for name, value in networks.named_parameters()}
    return [output.detach() for output in outputs], grads, dict(networks.named_buffers())


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative difference of all together, in the Frobenius norm."""
    difference = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((difference / sum(value.square().sum() for value in wanted.values())) ** 0.5)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_one_batch_of_two_views_equals_two_passes(arch: str) -> None:
    """Outputs and running statistics to the bit; gradients, whose sums run over both views, to rounding."""
    outputs, grads, buffers = results(made(arch, joint=True), views())
    wanted, wanted_grads, wanted_buffers = results(made(arch), views())
    assert all(torch.equal(value, other) for value, other in zip(outputs, wanted, strict=True))
    assert buffers.keys() == wanted_buffers.keys()
    assert all(torch.equal(buffers[name], wanted_buffers[name]) for name in buffers)
    assert buffers["encoder.bn1.num_batches_tracked"] == 2
    assert largest(grads, wanted_grads) < 4e-15


def test_statistics_are_not_those_of_both_views_together() -> None:
    """Negative control: without parts of its own in the batch, the outputs differ."""
    together = made()
    batch = together.expander(together.encoder(torch.cat(views())))
    assert not torch.allclose(batch, torch.cat(made()(views())))


def test_views_of_several_sizes_go_by_size() -> None:
    given = views((16, 16, 8, 8, 8))
    outputs, _, buffers = results(made(joint=True), given)
    wanted, _, wanted_buffers = results(made(), given)
    assert all(torch.equal(value, other) for value, other in zip(outputs, wanted, strict=True))
    assert all(torch.equal(buffers[name], wanted_buffers[name]) for name in buffers)


def test_evaluation_after_joint_views_is_of_one() -> None:
    joint, separate = made(joint=True), made()
    for networks in (joint, separate):
        networks(views())
    image = views()[0][:3]
    assert torch.equal(joint.eval().encoder(image), separate.eval().encoder(image))


def test_a_copy_has_a_count_of_its_own() -> None:
    """A momentum copy made of joint networks."""
    joint = made(joint=True)
    copied = copy.deepcopy(joint)
    counts = {id(layer.joint_views) for layer in copied.modules() if isinstance(layer, BatchNorm)}
    assert len(counts) == 1
    assert counts != {id(joint.encoder.bn1.joint_views)}
    assert all(torch.equal(*pair) for pair in zip(copied(views()), joint(views()), strict=True))


@pytest.mark.slow
def test_joint_views_compile_whole() -> None:
    joint = made(joint=True)
    compiled = torch.compile(joint, fullgraph=True, backend="aot_eager")
    outputs, grads, buffers = results(compiled, views())
    wanted, wanted_grads, wanted_buffers = results(made(), views())
    for value, other in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    stripped = {name.removeprefix("_orig_mod."): value for name, value in grads.items()}
    assert largest(stripped, wanted_grads) < 1e-12
    held = {name.removeprefix("_orig_mod."): value for name, value in buffers.items()}
    assert all(torch.allclose(held[name], value, rtol=1e-12) for name, value in wanted_buffers.items())
    assert isinstance(joint.encoder.bn1, BatchNorm)
    assert joint.encoder.bn1.joint_views == JointViews(1)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_outputs_computed_again_change_nothing(arch: str, joint: bool) -> None:
    outputs, grads, buffers = results(made(arch, joint=joint, recompute=True), views())
    wanted, wanted_grads, wanted_buffers = results(made(arch, joint=joint), views())
    for value, other in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    assert largest(grads, wanted_grads) < 1e-12
    assert all(torch.allclose(buffers[name], value, rtol=1e-12) for name, value in wanted_buffers.items())


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of a forward pass but for parameters, each storage once; what it packs is unpacked."""
    skipped = {value.untyped_storage()._cdata for value in network.parameters()}
    held: dict[int, Any] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in skipped:
            held[storage._cdata] = storage

    def packing(tensor: Tensor) -> Any:
        packed = pack(tensor)
        if isinstance(packed, Recipe):
            keep(packed.x)
            for each in packed.found:
                keep(each)
            if isinstance(packed.residual, Tensor):
                keep(packed.residual)
        else:
            keep(packed)
        return packed

    with torch.autograd.graph.saved_tensors_hooks(packing, unpack):
        network(x)
    return sum(storage.nbytes() for storage in held.values())


def megabytes_a_source_image(**settings: Any) -> float:
    """Of ResNet-50 at 224 px in bf16, two views; no arithmetic is done."""
    with torch.device("meta"):
        network = replace_norms(resnet("resnet50").bfloat16(), **settings)
        x = torch.empty(2, 3, 224, 224, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    return 2 * saved_bytes(network, x) / 2 / 1e6


def test_a_source_image_takes_49_megabytes_in_place_of_87() -> None:
    with torch.device("meta"):
        plain = resnet("resnet50").bfloat16()
        x = torch.empty(2, 3, 224, 224, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    torchs = 2 * saved_bytes(plain, x) / 2 / 1e6
    assert torchs == pytest.approx(87.5, abs=0.6)
    assert megabytes_a_source_image() == pytest.approx(87.5, abs=0.6)  # one node in place of three keeps no less
    assert megabytes_a_source_image(recompute=True) == pytest.approx(49.0, abs=0.6)
