"""What frozen features are worth."""

from fastvicreg.evaluate.knn import knn_predict
from fastvicreg.evaluate.linear import linear_predict

__all__ = ["knn_predict", "linear_predict"]
