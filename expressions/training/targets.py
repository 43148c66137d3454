"""What a network learns of an image: its label, and where there are FER+ votes, how they fall.

A row of targets or logits has the classes first. With votes, it has 2 * classes + 1 columns: then come the votes for
each class, and those for other answers. Predicting the votes as well makes the network see more than a single label.
"""

from collections.abc import Callable

import keras
import numpy as np


def make_targets(labels: np.ndarray, votes: np.ndarray | None, classes: int) -> np.ndarray:
    """The targets of images, float32 (n, columns): labels one-hot, then shares of votes, zeros where nobody voted."""
    one_hot = keras.utils.to_categorical(labels, classes)
    return one_hot if votes is None else np.hstack([one_hot, votes])


def mix_soft_labels(targets: np.ndarray, soft: np.ndarray, share: float, classes: int) -> np.ndarray:
    """The targets of `make_targets`, with a `share`, 0 to 1, of soft labels.

    The soft labels, float32 (n, columns), are for the labels or for labels and votes; rows of NaN change nothing. An
    image without votes gets the soft ones alone.
    """
    columns = min(targets.shape[1], soft.shape[1])
    shares = np.full((len(targets), columns), share, np.float32)
    shares[~targets[:, classes:].any(axis=1), classes:] = 1
    shares[np.isnan(soft[:, 0])] = 0
    mixed = targets.copy()
    mixed[:, :columns] += shares * (np.nan_to_num(soft[:, :columns]) - mixed[:, :columns])
    return mixed


def loss_and_accuracy(classes: int, label_smoothing: float) -> tuple[Callable, Callable]:
    """The smoothed cross-entropy of labels plus that of votes, and the accuracy of labels.

    Both are functions of targets and logits, (n, columns), that give (n,).
    """

    def loss(targets, logits):
        entropy = keras.losses.categorical_crossentropy
        labels = entropy(targets[:, :classes], logits[:, :classes], from_logits=True, label_smoothing=label_smoothing)
        if logits.shape[1] == classes:
            return labels
        # Keras's own would give a row of zeros, an image without votes, no loss but a gradient
        return labels - keras.ops.sum(targets[:, classes:] * keras.ops.log_softmax(logits[:, classes:]), axis=-1)

    def accuracy(targets, logits):
        return keras.metrics.categorical_accuracy(targets[:, :classes], logits[:, :classes])

    return loss, accuracy


def extract_label_head(weights: list[np.ndarray], images_per_class: np.ndarray, tau: float) -> list[np.ndarray]:
    """The weights of the network that ships: it predicts labels alone, the rare ones a little more readily.

    Args:
        weights: Of the trained network; the last two are its last layer's kernel (features, columns) and bias.
        images_per_class: Of the training split, int (classes,).
        tau: How far to undo that a network learns to expect what is frequent, from 0 (not at all) to 1 (all classes
            alike): post-hoc logit adjustment, Menon et al. 2021, arXiv:2007.07314, equation 9.
    """
    *others, kernel, bias = weights
    classes = len(images_per_class)
    prior = images_per_class / images_per_class.sum()
    return [*others, kernel[:, :classes], bias[:classes] - tau * np.log(prior)]
