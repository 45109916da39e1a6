"""Training so that a killed one goes on to the same result: image classifiers, and language models from scratch.

`loop` is what both share: optimizer, schedule, checkpoint and history. `images` and `language` say what a batch is and
what is measured after an epoch; `distill` trains a smaller classifier towards the one that it came from; `tokenizer` makes
the vocabulary that a language model from scratch begins with.
"""

from weightsmith.train.distill import DistillOptions, distill
from weightsmith.train.images import TrainOptions, fit
from weightsmith.train.language import LanguageOptions, fit_language
from weightsmith.train.loop import History, find_device
from weightsmith.train.tokenizer import train_tokenizer

__all__ = [
    "DistillOptions",
    "History",
    "LanguageOptions",
    "TrainOptions",
    "distill",
    "find_device",
    "fit",
    "fit_language",
    "train_tokenizer",
]
