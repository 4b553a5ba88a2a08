"""What a start does without: torch's compiler, where nothing is compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIMIZERS = """
import sys, torch
from fastvicreg.optim import LARS, spare_the_compiler
spare_the_compiler()
p = torch.nn.Parameter(torch.ones(3))
for optimizer in (LARS([p], lr=0.1), torch.optim.SGD([p], lr=0.1), torch.optim.AdamW([p]), torch.optim.LBFGS([p])):
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
print(torch.compile(lambda x: x + 1, backend="eager")(p).tolist())
"""


@pytest.mark.slow
def test_optimizers_are_made_without_torchs_compiler_which_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", OPTIMIZERS], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False", "[2.0, 2.0, 2.0]"], done.stderr
