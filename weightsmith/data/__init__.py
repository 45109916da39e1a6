"""Images and labels: where they come from, how they are split, which of them are sealed, and other views of them."""

from weightsmith.data.folder import folder
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import digits, medmnist, open_data, open_part
from weightsmith.data.split import Source, Split

__all__ = ["ImageSet", "Source", "Split", "digits", "folder", "medmnist", "open_data", "open_part"]
