"""Read a person's expression relative to the face at rest, which the network may take for a sad or an angry one."""

import numpy as np

NEUTRAL_SECONDS = 1.0  # for so long a face is read to learn how it looks at rest
# log-odds: so much likelier neutral is at rest than any other label, and a label is never lowered by more, so that a
# clear expression is still seen
NEUTRAL_MARGIN, MAX_NEUTRAL_LOG_ODDS = 1.0, 3.0


class NeutralFace:
    """What the classifier makes of a person's face at rest, and its readings relative to that.

    Attributes:
        label: The index of neutral among the labels.
        log_odds: How much likelier than neutral each label is at rest, float32 (classes,), 0 to MAX_NEUTRAL_LOG_ODDS;
            None while the first NEUTRAL_SECONDS are read.
    """

    def __init__(self, label: int, seconds: float):
        self.label, self.end, self.readings, self.log_odds = label, seconds + NEUTRAL_SECONDS, [], None

    def correct(self, probabilities: np.ndarray, seconds: float) -> np.ndarray:
        """Return probabilities, float32 (classes,), relative to the face at rest; learn from them at first."""
        logits = np.log(np.maximum(probabilities, 1e-6))
        if self.log_odds is None:
            self.readings.append(logits)
            if seconds < self.end:
                return probabilities
            rest = np.mean(self.readings, axis=0)
            self.log_odds = (rest - rest[self.label] + NEUTRAL_MARGIN).clip(0, MAX_NEUTRAL_LOG_ODDS)
            self.log_odds[self.label] = 0
        powers = np.exp(logits - self.log_odds)
        return powers / powers.sum()
