"""MoCo v2: a query is told from a queue of earlier keys by its cosine to the key of the image's other view.

Shape suffixes: B this process's batch, M the batch of all processes, K the queue, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, Schedule, Terms
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.methods.embeddings import batch_ranks, gathered_values, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.moco.config import MoCoConfig
from fastvicreg.methods.momentum import rising_momentum
from fastvicreg.methods.queue import KeyQueue, check_queue
from fastvicreg.methods.two_views import Followed
from fastvicreg.methods.views import each_view, expect_two


class MoCo(Followed):
    """As facebookresearch/moco's builder.py with the options of v2; ``symmetric`` as solo-learn's MoCo V2+.

    The key encoder moves after each update, which is where the original moves it too: before it next encodes. The
    original shuffles keys among devices, so that a device's batch norm sees other images in queries and keys. Here
    batch norm is over all processes' samples and nothing is shuffled: one device could not, and several have no
    statistics of their own to hide.
    """

    title = "MoCo"

    def __init__(self, encoder: Encoder, config: MoCoConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = mlp(encoder.features, config.projector, last_bias=True, batch_norm=config.batch_norm)
        super().__init__(encoder, projector, config, Column("contrast", "nce"), impl=impl)
        self.follow_by_momentum()
        directions = 2 if config.symmetric else 1
        self.queues = nn.ModuleList(KeyQueue(config.queue, config.projector[-1]) for _ in range(directions))
        self._new_keys: list[Tensor] = []
        """Of the last step, (M, D) a queue: they enter only once the update took place. Kept afterwards: a replayed
        step finds its new keys in the same tensors."""

    def likely_cause(self) -> str:
        config = self.config
        if config.momentum < 0.9:
            return f"--momentum {config.momentum:g} makes keys of different steps unlike: .99 to .999 is published"
        if config.temperature > 1:
            return f"--temperature {config.temperature:g} makes all images alike to the loss: .2 is published"
        return ""

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``momentum`` of the key encoder. ``UserError`` for a queue below the batch or above the data."""
        check_queue(self.config.queue, horizon, "an image would be told from keys of its own")
        start, end = self.config.momentum, self.config.momentum_end
        return {"momentum": partial(rising_momentum, start=start, steps=horizon.steps, end=end)}

    def embed(self, views: tuple[Tensor, ...]) -> list[Tensor]:
        """Two views, each (B, C, H, W), to queries (B, D): the first's, or both where the loss is symmetric.

        ``UserError`` for another number of views.
        """
        expect_two(views, self.title)
        features = each_view(self.encoder, views[: len(self.queues)])
        return each_view(self.projector, features)

    def target(self, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keys (B, D) of each query's other view, by the key encoder."""
        return super().target(views[::-1][: len(self.queues)])

    def loss(self, embeddings: list[Tensor], targets: tuple[Tensor, ...]) -> Terms:
        """InfoNCE, the mean over directions; the keys wait for ``after_update``.

        With one direction the variance and covariance terms see the one online view twice.
        """
        ranks = batch_ranks(self.process_group)
        with without_autocast(embeddings[0].device.type):
            keys = [unit(key_BD.detach()) for key_BD in targets]
            losses = [
                info_nce(query_BD, key_BD, queue.get_buffer("keys_KD"), self.config.temperature)
                for query_BD, key_BD, queue in zip(embeddings, keys, self.queues, strict=True)
            ]
        self._new_keys = [gathered_values(key_BD, ranks) for key_BD in keys]
        contrast = torch.stack(losses).mean()
        parts = {"contrast": contrast.detach()}
        return self.terms(contrast, parts, embeddings[0], embeddings[-1], targets)

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The key encoder follows, by ``scalars["momentum"]``, and the step's keys enter the queues."""
        super().after_update(scalars, finite)
        for queue, new_MD in zip(self.queues, self._new_keys, strict=False):  # none before the first loss
            assert isinstance(queue, KeyQueue)
            queue.push(new_MD, finite)


def info_nce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of [q.k, q.queue] / ``temperature``, the first being right; only queries have a gradient.

    ``key_BD`` and ``queue_KD`` are unit vectors.
    """
    query_BD = unit(query_BD)
    positive_B1 = (query_BD * key_BD).sum(1, keepdim=True)
    logits = torch.cat((positive_B1, query_BD @ queue_KD.to(query_BD.dtype).T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
