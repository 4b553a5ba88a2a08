"""An ONNX graph from images (B, 3, H, W), normalised, to features (B, F), for any B; the card is in its metadata."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import torch

from fastvicreg.export import Written
from fastvicreg.export.card import card_of
from fastvicreg.export.writing import draft, features, noise_input, require_close, required
from fastvicreg.pretrained import METADATA, TrainedEncoder

OPSET = 18
TOLERANCE = 1e-4
"""ONNX Runtime's kernels round otherwise than torch's."""
BATCHES = (1, 3)
"""Sizes other than the one that the graph was recorded with."""


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Write the graph and run it by ONNX Runtime on other batches than it was recorded with.

    ``UserError`` without onnx, onnxscript and onnxruntime, and where the file cannot be written.
    """
    onnx, runtime = required("onnx", "onnx"), required("onnxruntime", "onnx")
    required("onnxscript", "onnx")
    encoder = trained.encoder.eval().cpu()
    with draft(path) as aside:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (noise_input(trained),),
                str(aside),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
        graph = onnx.load(aside)
        onnx.helper.set_model_props(graph, {METADATA: json.dumps(card_of(trained))})
        onnx.checker.check_model(graph)
        onnx.save(graph, aside)
        session = runtime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        worst = 0.0
        for batch in BATCHES:
            x_BCHW = noise_input(trained, batch)
            (found,) = session.run(None, {"images": x_BCHW.numpy()})
            found_BF, expected_BF = torch.from_numpy(found), features(encoder, x_BCHW)
            worst = max(worst, require_close("onnxruntime", path, found_BF, expected_BF, TOLERANCE))
    sizes = " and ".join(map(str, BATCHES))
    proof = f"run by onnxruntime {runtime.__version__} on batches of {sizes}, largest difference {worst:.0e}"
    load = f'session = onnxruntime.InferenceSession("{path}"); (features,) = session.run(None, {{"images": images}})'
    return Written(proof, load)


@contextlib.contextmanager
def _quiet():
    """Without the exporter's remarks on its own rewriting."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
