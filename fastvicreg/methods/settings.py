"""Settings that several methods share. Importing this imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext


class TakesBranch(Protocol):
    """A method that may have a second branch."""

    def add_branch(self, encoder: Any) -> None: ...


Branchable = TypeVar("Branchable", bound=TakesBranch)


@dataclass(frozen=True, kw_only=True)
class Regularized:
    """VICReg's variance and covariance terms beside a method's own loss, on the projections of both online views.

    Paper section 6 and Table 4; see ``fastvicreg.methods.regularize``. At weight 0 neither is computed.
    """

    variance: float = 0.0
    """Weight of VICReg's variance term on the projections; the paper takes 1 for BYOL and SimSiam."""
    covariance: float = 0.0
    """Weight of VICReg's covariance term on the projections; the paper takes .01 for BYOL and SimSiam."""
    regularize: Literal["normalized", "raw"] = "normalized"
    """What the two terms see: normalized, unit vectors times sqrt(D), or raw, the projections as they are."""

    @property
    def is_regularized(self) -> bool:
        """Whether a term has a weight."""
        return bool(self.variance or self.covariance)

    def check_regularized(self) -> None:
        """``UserError`` for weights that cannot train, and for a form of terms that have none."""
        for name in ("variance", "covariance"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"--{name} {value} cannot train: give a finite value of at least 0.")
        if self.regularize == "raw" and not self.is_regularized:
            raise UserError("--regularize raw has nothing to act on: give --variance or --covariance a weight above 0.")

    def regularized_notes(self) -> tuple[str, ...]:
        """What a person should know of the chosen form, one line each."""
        if self.regularize != "raw":
            return ()
        return (
            "--regularize raw: the loss does not see the projections' length, so that they can meet the variance term "
            "by growing along one direction, at rank 1; --regularize normalized prevents it.",
        )


@dataclass(frozen=True, kw_only=True)
class Branched:
    """A second branch that shares nothing with the first (paper section 6.3, Table 5): one view goes through each."""

    branch_b: tuple[str, ...] | None = None
    """An encoder of its own for view 2, and a head: ARCH [FIELD=VALUE ...], such as resnet34 or vit_tiny patch=8.
    Fields left out are --arch's where the family is the same. Without it both views go through one network."""
    head_b: tuple[int, ...] = ()
    """Widths of branch B's head, of which the last must be branch A's; without it those of branch A."""

    def with_branch(self, method: Branchable, context: BuildContext) -> Branchable:
        """``method``, whose second view goes through a branch of its own where ``branch_b`` says so."""
        if self.branch_b:
            method.add_branch(context.build_encoder(*self.branch_b))
        return method

    def widths_b(self, flag: str, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Of branch B's head beside branch A's ``widths``, which the option ``flag`` gives.

        ``UserError`` where they cannot be.
        """
        if self.branch_b == ():
            raise UserError("--branch-b needs an architecture, such as --branch-b resnet18.")
        if not self.head_b:
            return widths
        given = f"--head-b {' '.join(map(str, self.head_b))}"
        if not self.branch_b:
            raise UserError(f"{given} is of a second branch: give --branch-b ARCH, or leave it out.")
        if min(self.head_b) < 2:
            raise UserError(f"{given} has a layer below 2: give widths such as 8192 8192 8192.")
        if self.head_b[-1] != widths[-1]:
            raise UserError(
                f"{given} ends {self.head_b[-1]} wide and {flag} {widths[-1]}, and both branches' embeddings are "
                f"compared: give the same last width."
            )
        return self.head_b


def branch_of(method: object) -> tuple[str, ...]:
    """The words that describe ``method``'s second encoder, as ``encoders.varied`` reads them; () where it has none."""
    return getattr(method, "branch_b", None) or ()


def takes_two_views(method: object) -> bool:
    """Whether ``method``, settings of one, has no place for a third view."""
    return getattr(method, "takes_two_views", False)


def takes_places(method: object) -> bool:
    """Whether ``method``, settings of one, asks for ``Batch.places_BV5`` as the last of its views."""
    return getattr(method, "takes_places", False)


def check_no_predictor(hidden: tuple[int, ...], default: tuple[int, ...]) -> None:
    """``UserError`` for widths of a predictor that there is not, unless they are the default."""
    if hidden != default:
        given = " ".join(map(str, hidden))
        raise UserError(f"--predictor-hidden {given} needs a predictor: leave it out, or --no-predictor.")


def check_share(flag: str, value: float, of: str) -> None:
    """``UserError`` where ``value`` is no share of ``of``, 0 to 1."""
    if not 0 <= value <= 1:
        raise UserError(f"{flag} {value} is no share of {of}: give 0 to 1.")


def check_frozen(updates: int, steps: int) -> None:
    """``UserError`` where prototypes that are left alone in the first ``updates`` never learn in a run of ``steps``."""
    if updates >= steps:
        raise UserError(
            f"--freeze-prototypes {updates} leaves the prototypes alone in all of the run's {steps} steps: give fewer, "
            "such as those of one epoch or 0, or train for longer."
        )


def check_positive(**values: float) -> None:
    """``UserError`` for the first of these fields that is not a finite value above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} cannot train: give a finite value above 0.")


def check_weights(**weights: float) -> None:
    """``UserError`` for the first of these terms' weights that is not finite or below 0, and where none is above 0.

    Below 0 a term is driven the other way: the variance term then makes the embeddings collapse.
    """
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} {value} cannot train: give a finite value of at least 0.")
    if not any(weights.values()):
        given = " ".join(f"--{name} 0" for name in weights)
        raise UserError(f"{given} leaves no term to train by: give one of them a weight above 0.")
