"""A machine on which Triton cannot build what it launches by: refused before a step, and passed over by auto."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from fastvicreg.kernels import triton_host
from fastvicreg.kernels.dispatch import KERNELS

pytest.importorskip("triton")
triton_driver = sys.modules["triton.runtime.driver"]

WORDS = "Failed to find C compiler. Please specify via CC environment variable"


class Driver:
    """Triton's of a machine with a GPU."""

    def get_current_target(self) -> tuple[str, int]:
        return "cuda", 90


@pytest.fixture(params=["with a compiler", "without"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether there is one, beside an H100 that torch finds."""

    def created() -> Driver:
        if request.param == "without":
            raise RuntimeError(f"{WORDS}\nand more")
        return Driver()

    forgotten = [triton_host.missing.cache_clear, *(KERNELS[name].choose.cache_clear for name in ("loss", "norm"))]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(triton_driver, "_create_driver", created)
    monkeypatch.setattr(triton_driver, "driver", triton_driver.DriverConfig())
    monkeypatch.setattr("triton.runtime.driver", triton_driver.driver)
    for forget in forgotten:
        forget()
    yield request.param != "without"
    for forget in forgotten:
        forget()


@pytest.mark.parametrize("name", ["loss", "norm"])
def test_without_a_c_compiler_triton_is_refused_with_the_way_out(name: str, compiler: bool) -> None:
    why = KERNELS[name].obstacle("triton", "cuda", torch.bfloat16)
    if compiler:
        assert why == ""
    else:
        assert f"Triton cannot launch here ({WORDS}): install a C compiler" in why
        assert "\n" not in why


def test_auto_then_normalises_by_torch(compiler: bool) -> None:
    chosen = KERNELS["norm"].choose("auto", "cuda", torch.bfloat16)
    assert chosen.name == ("triton" if compiler else "native")
