"""The nearest neighbours among the training pictures vote on what a picture shows."""

import numpy as np

from cvt.evaluate.features import Features

# DINO's, which most published k-NN figures on frozen features use.
TEMPERATURE = 0.07


def knn_votes(train: Features, vectors: np.ndarray, num_classes: int, k: int) -> np.ndarray:
    """Returns each class's share of the votes, (N, num_classes); rows add up to 1.

    The `k` training pictures of the highest cosine similarity s vote for their class with the
    weight exp(s / 0.07). The search is exact; there are no more neighbours than pictures.

    Shape: `vectors` (N, num_features).

    Source: Caron et al., DINO, arXiv 2104.14294, section 4.1 and appendix F.1; Wu et al.,
    arXiv 1805.01978, section 3.4.
    """
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(
        n_neighbors=min(k, len(train.labels)),
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
        algorithm="brute",
        metric="cosine",
    ).fit(train.vectors, train.labels)
    shares = np.zeros((len(vectors), num_classes))
    shares[:, votes.classes_] = votes.predict_proba(vectors)
    return shares
