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


def votes_layer(weights, classes):
    """Kernel and bias of the outputs for votes, or None, from the weights that `label_outputs` takes."""
    *_, kernel, bias = weights
    return (kernel[:, classes:], bias[classes:]) if bias.size > classes else None


def label_outputs(weights, images_per_class, strength):
    """The weights of the network that ships, which tells labels alone, and the rare ones a little more readily.

    weights: a list of arrays, the last two kernel (features, columns) and bias (columns) of the last layer.
    images_per_class: of the training split, int (classes). strength: by how much to undo that a network learns to
    expect what is frequent, 0 (not at all) to 1 (all classes alike): post-hoc logit adjustment, Menon et al. 2021,
    arXiv:2007.07314, equation 9."""
    *others, kernel, bias = weights
    classes = len(images_per_class)
    expected = strength * np.log(images_per_class / images_per_class.sum())
    return [*others, kernel[:, :classes], bias[:classes] - expected]
