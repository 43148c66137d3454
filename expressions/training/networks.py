"""The larger networks that train.py offers besides its own, and the layers that all of them are made of.

A network takes float32 (n, 48, 48, 1) with values from 0 to 1. The comments tell the shape behind each line.
"""

import keras
from keras import layers

from expressions import IMAGE_SIZE


def large_network(outputs: int, activation: str | None) -> keras.Sequential:
    """The compact one, a stage deeper: 3.38 M parameters, 116 M multiply-adds a face."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *conv_bn_relu(32, pooled=True),                       # 24 x 24 x 32
            *conv_bn_relu(64), *conv_bn_relu(64, pooled=True),    # 12 x 12 x 64
            *conv_bn_relu(128), *conv_bn_relu(128, pooled=True),  # 6 x 6 x 128
            *conv_bn_relu(256), *conv_bn_relu(256, pooled=True),  # 3 x 3 x 256
            *conv_bn_relu(384), *conv_bn_relu(384),               # 3 x 3 x 384
            layers.GlobalAveragePooling2D(),                      # 384
            layers.Dropout(0.3),
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="large",
    )  # fmt: skip


def classic_network(outputs: int, activation: str | None) -> keras.Sequential:
    """The baseline of many tutorials: 4.48 M parameters, 290 M multiply-adds a face."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *conv_bn_relu(64), layers.MaxPooling2D(), layers.Dropout(0.25),           # 24 x 24 x 64
            *conv_bn_relu(128, size=5), layers.MaxPooling2D(), layers.Dropout(0.25),  # 12 x 12 x 128
            *conv_bn_relu(512), layers.MaxPooling2D(), layers.Dropout(0.25),          # 6 x 6 x 512
            *conv_bn_relu(512), layers.MaxPooling2D(), layers.Dropout(0.25),          # 3 x 3 x 512
            layers.Flatten(),                                                         # 4608
            *_dense_bn_relu(256), layers.Dropout(0.25),                               # 256
            *_dense_bn_relu(512), layers.Dropout(0.25),                               # 512
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="classic",
    )  # fmt: skip


def conv_bn_relu(filters: int, size: int = 3, pooled: bool = False) -> tuple[keras.Layer, ...]:
    """Convolution, batch normalisation, ReLU. pooled: maxima of 2 x 2 come before, so that the rest has less to do."""
    convolution = layers.Conv2D(filters, size, padding="same", use_bias=False, kernel_initializer="he_normal")
    return convolution, *([layers.MaxPooling2D()] if pooled else []), *_bn_relu()


def _dense_bn_relu(units):
    return layers.Dense(units, use_bias=False, kernel_initializer="he_normal"), *_bn_relu()


def _bn_relu():  # it has an offset, so the layer before needs no bias
    # Keras's momentum of 0.99 would average over several epochs of a small data set
    return layers.BatchNormalization(momentum=0.9), layers.ReLU()
