"""Networks and their named sites: family tables, loading and saving, recording and patching.

A `Model` is a network plus a `Family` table that says where each `Site` lies; `record`, `patch` and `Model.run_from`
read and write there. Nothing here knows why anybody would.
"""

from weightsmith.models.family import Family, families
from weightsmith.models.hooks import Recording, count_blocks, patch, record
from weightsmith.models.model import Model
from weightsmith.models.preprocess import Preprocess
from weightsmith.models.split import Split, Trace
from weightsmith.models.store import create, create_language, load, presets, registered_by, save, wrapper_of

__all__ = [
    "Family",
    "Model",
    "Preprocess",
    "Recording",
    "Split",
    "Trace",
    "count_blocks",
    "create",
    "create_language",
    "families",
    "load",
    "patch",
    "presets",
    "record",
    "registered_by",
    "save",
    "wrapper_of",
]
