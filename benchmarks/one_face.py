"""Time the judgement of one face, batch 1, on one processor core: compiled, as the webcam program has it, and by Keras.

python benchmarks/one_face.py --model models/emotion_model.h5
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 500


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "emotion_model.h5")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # Linux; before the libraries start their threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    else:
        print("This system can't be asked for one core: the times are those of all of them.")

    sys.path.insert(0, str(ROOT))
    import keras
    import numpy as np

    from expressions import UserError
    from expressions.classifier import Classifier
    from expressions.model_compiler import complete_network
    from expressions.model_validation import read_votes_layer
    from expressions.training import synthetic

    try:
        compiled = Classifier.load(options.model)
    except UserError as error:
        parser.error(str(error))
    network = complete_network(keras.models.load_model(options.model, compile=False), read_votes_layer(options.model))
    classifiers = {"Keras": Classifier(network, compiled.metadata), "compiled": compiled}
    face = synthetic.draw_face("happy", np.random.default_rng(0), 48)
    for engine, classifier in classifiers.items():
        for name, flip_tta in (("single view", False), ("with mirrored view", True)):
            seconds = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                classifier.predict_proba([face], flip_tta)
                seconds.append(time.perf_counter() - began)
            fast, median = sorted(seconds)[ROUNDS // 10] * 1e3, statistics.median(seconds) * 1e3
            print(f"{engine}, {name}: {median:.2f} ms a face (median of {ROUNDS}; a tenth took at most {fast:.2f} ms)")


if __name__ == "__main__":
    main()
