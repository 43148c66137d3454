"""What a network learns of an image: its label, and where there are FER+ votes, how they fall.

A row of targets or logits has the classes first. With votes, it has 2 * classes + 1 columns: then come the votes for
each class, and those for other answers. Predicting the votes as well makes the network see more than a single label.
"""

import keras
import numpy as np


def targets(split, classes):
    """The targets of a Split, float32 (n, columns): labels one-hot, then shares of votes, zeros where nobody voted."""
    labels = keras.utils.to_categorical(split.labels, classes)
    return labels if split.votes is None else np.hstack([labels, split.votes])


def loss_and_accuracy(classes, label_smoothing):
    """The cross-entropy of labels, smoothed, plus that of votes; and the accuracy of labels. Both are functions of
    targets and logits, (n, columns), and give (n,)."""

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


def label_outputs(weights, classes, label_share):
    """The weights of a network that tells labels alone, from those of one that also tells votes.

    Labels and votes are linear in the same features, so the weighted mean of their logits is one dense layer again.
    weights: a list of arrays, the last two kernel (features, columns) and bias (columns) of the last layer.
    label_share: the weight of the label's logits, 0 to 1; the rest is the votes'."""
    *others, kernel, bias = weights
    if bias.size == classes:
        return weights

    def mean(values):
        return label_share * values[..., :classes] + (1 - label_share) * values[..., classes : 2 * classes]

    return [*others, mean(kernel), mean(bias)]
