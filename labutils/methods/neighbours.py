"""k-nearest neighbours: a class for each feature from the training features that are closest to it."""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError, check_choice, check_flag, check_whole
from labutils.methods.features import Features, check_features, score

METRICS = ("cosine", "euclidean")
QUERIES = 1000  # whose distances to all neighbours are in memory at once
NEAREST = 1e-6  # what a distance of 0 counts as


def knn(
    train: Features, test: Features, *, k: int = 10, metric: str = "cosine", weighted: bool = True
) -> dict[str, float]:
    """How well the nearest training features tell a test feature's class; the distances are exact.

    Args:
        train, test: features (N, F) and labels (N,).
        k: neighbours that vote, from 1 to the number of training features.
        metric: cosine or euclidean.
        weighted: whether a vote counts by one over its distance; otherwise all count alike.

    Returns:
        top1 and top5, fractions from 0 to 1.

    Raises:
        SettingError: an argument that is not allowed, or features that are not finite.
    """
    return score(NeighbourHead(train, k=k, metric=metric, weighted=weighted), test)


class NeighbourHead(nn.Module):
    """Scores (N, classes) by the votes of the k nearest training features; arguments and errors as in `knn`.

    The training features are not part of its state: to compute them again is quicker than to read them.
    """

    def __init__(self, train: Features, *, k: int = 10, metric: str = "cosine", weighted: bool = True):
        features, labels = train
        check_features(features, labels)
        check_whole("k", k, 1)
        check_choice("metric", metric, METRICS)
        check_flag("weighted", weighted)
        if k > len(features):
            raise SettingError("k", k, f"a whole number from 1 to {len(features)}, the number of training features")
        super().__init__()
        self.k, self.metric, self.weighted = k, metric, weighted
        self.in_features, self.out_features = features.shape[1], int(labels.max()) + 1
        self.counts = labels.bincount().tolist()
        by_class = labels.argsort(stable=True)
        self.register_buffer("centre", features.mean(dim=0), persistent=False)
        self.register_buffer("features", self.projected(features[by_class]), persistent=False)
        self.register_buffer("labels", labels[by_class], persistent=False)

    def projected(self, features: torch.Tensor) -> torch.Tensor:
        """Features as their distances are measured: on the unit sphere for cosine, else from their centre.

        Far from 0 the squares below would leave no digits for what differs.
        """
        return F.normalize(features, dim=1) if self.metric == "cosine" else features - self.centre

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.votes(self.projected(part)) for part in features.float().split(QUERIES)])

    def votes(self, queries: torch.Tensor) -> torch.Tensor:
        # |q - t|^2 = |q|^2 + |t|^2 - 2 qt, of which the first is the same for all neighbours of a query.
        products = torch.addmm(self.features.square().sum(dim=1), queries, self.features.T, alpha=-2)
        nearest, indices = products.topk(self.k, dim=1, largest=False)
        squared = (nearest + queries.square().sum(dim=1, keepdim=True)).clamp_min(0)
        # On the unit sphere half the squared distance is 1 - cosine.
        distance = squared / 2 if self.metric == "cosine" else squared.sqrt()
        votes = 1 / distance.clamp_min(NEAREST) if self.weighted else torch.ones_like(distance)
        scores = votes.new_zeros(len(queries), self.out_features).scatter_add_(1, self.labels[indices], votes)
        # Classes without votes follow, in the order of the distance to their nearest example.
        parts = products.split(self.counts, dim=1)
        closest = torch.stack([part.amin(1) if part.shape[1] else part.sum(1) + math.inf for part in parts], dim=1)
        return torch.where(scores > 0, scores, products.amin() - 1 - closest)
