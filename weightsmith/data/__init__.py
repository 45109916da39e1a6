"""Images with labels, and running text: where they come from, how they are split, what is sealed, and other views."""

from weightsmith.data.folder import folder
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import digits, medmnist, open_data, open_part
from weightsmith.data.split import Source, Split
from weightsmith.data.texts import TextSet
from weightsmith.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "ImageSet",
    "Source",
    "Split",
    "TextSet",
    "digits",
    "folder",
    "medmnist",
    "open_data",
    "open_part",
    "tiny_imagenet",
]
