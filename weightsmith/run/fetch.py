"""`weightsmith download`: a published data set, fetched and checked."""

from __future__ import annotations

from weightsmith.data.download import download
from weightsmith.run.options.correct import DownloadOptions
from weightsmith.run.outcome import Outcome


def fetch(options: DownloadOptions) -> Outcome:
    """Fetch what the options name, unless it is there already.

    Raises:
        WeightsmithError: an unknown name or size, no network, no room, or a file that is not what was published.
    """
    path = download(options.name, options.size, options.to)
    told = f"{path} is complete and its MD5 is right"
    return Outcome(command="download", figures={"file": str(path)}, summary=[told], shown=[told])
