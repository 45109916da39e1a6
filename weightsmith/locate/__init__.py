"""Which places in a network carry a decision: activations are restored or removed, and the effect is measured.

`sweep` restores any list of sites in any cases, exactly; `grids` makes the lists; `causal_trace` is the sweep that a
correction starts from. `screened` guesses by gradients where to look, and says what it missed. `astra` attributes to
patches of the image, and `steering` steers away from them.
"""

from weightsmith.locate import astra, grids, steering
from weightsmith.locate.attention import Attention, cls_attention
from weightsmith.locate.cases import Cases, ImageCases, Prompt, PromptCases
from weightsmith.locate.metrics import METRICS
from weightsmith.locate.screen import Screened, screen, screened
from weightsmith.locate.sweep import Sweep, sweep
from weightsmith.locate.trace import causal_trace, error_cases

__all__ = [
    "METRICS",
    "Attention",
    "Cases",
    "ImageCases",
    "Prompt",
    "PromptCases",
    "Screened",
    "Sweep",
    "astra",
    "causal_trace",
    "cls_attention",
    "error_cases",
    "grids",
    "screen",
    "screened",
    "steering",
    "sweep",
]
