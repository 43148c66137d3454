"""The networks."""

import train


def test_the_classic_network_is_the_one_of_the_tutorials():
    classic = train.classic_network(7, "softmax")
    convolutions = [layer for layer in classic.layers if "conv" in layer.name]
    assert [(layer.filters, layer.kernel_size) for layer in convolutions] == [
        (64, (3, 3)),
        (128, (5, 5)),
        (512, (3, 3)),
        (512, (3, 3)),
    ]
    assert 4.4e6 < classic.count_params() < 4.6e6
    assert train.compact_network(7, "softmax").count_params() == 1_167_015
