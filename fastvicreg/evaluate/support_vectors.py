"""Linear SVMs by scikit-learn's LIBLINEAR, as vissl evaluates VOC07.

N training images, M queries, D features, C classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

ITERATIONS = 2000
EPSILON = 1e-5
"""Added to a feature vector's length (vissl, svm_trainer.py)."""


def average_precisions(
    bank_ND: np.ndarray, targets_NC: np.ndarray, query_MD: np.ndarray, answers_MC: np.ndarray, costs: Sequence[float]
) -> list[tuple[float, float]]:
    """(average precision in percent, cost) of each class, classes in parallel.

    Features are brought to unit length; squared hinge, l2, dual, a weight of 2 for positives; the cost is the one of
    the best average precision in 3-fold cross-validation. A target of -1 is learnt from as absent and not evaluated,
    as in vissl. Source: facebookresearch/vissl svm_trainer.py and its voc07 svm configuration.
    """
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning

    bank_ND, query_MD = (_unit(features) for features in (bank_ND, query_MD))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at 2000 iterations
        cores = len(os.sched_getaffinity(0))
        jobs = (
            delayed(_one_class)(bank_ND, targets_C, query_MD, answers_C, costs)
            for targets_C, answers_C in zip(targets_NC.T, answers_MC.T, strict=True)
        )
        found: Any = Parallel(n_jobs=cores, prefer="threads")(jobs)
    return list(found)


def _one_class(
    bank_ND: np.ndarray, targets_N: np.ndarray, query_MD: np.ndarray, answers_M: np.ndarray, costs: Sequence[float]
) -> tuple[float, float]:
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    there_N = np.where(targets_N == 1, 1, -1)

    def machine(cost: float) -> LinearSVC:
        options: dict[str, Any] = {"dual": True, "class_weight": {1: 2, -1: 1}, "random_state": 0}
        return LinearSVC(C=cost, max_iter=ITERATIONS, **options)

    scores = [
        cross_val_score(machine(cost), bank_ND, there_N, cv=3, scoring="average_precision").mean() for cost in costs
    ]
    cost = costs[int(np.argmax(scores))]
    decided_M = machine(cost).fit(bank_ND, there_N).decision_function(query_MD)
    counts_M = answers_M != -1
    return 100 * interpolated_precision(answers_M[counts_M] == 1, decided_M[counts_M]), cost


def interpolated_precision(there_M: np.ndarray, score_M: np.ndarray) -> float:
    """The area under precision over recall, precision being the best at that recall or beyond (VOC since 2010)."""
    if not there_M.any():
        return 0.0
    there_M = there_M[np.argsort(-score_M, kind="stable")]
    found_M = there_M.cumsum()
    precision_M = found_M / np.arange(1, len(there_M) + 1)
    best_M = np.maximum.accumulate(precision_M[::-1])[::-1]
    return float(best_M[there_M].mean())


def _unit(features_ND: np.ndarray) -> np.ndarray:
    features_ND = features_ND.astype(np.float64)
    return features_ND / (np.linalg.norm(features_ND, axis=1, keepdims=True) + EPSILON)
