"""A dataset of any kind into a file that is read fast: the same bytes for any number of workers, or none at all."""

from fastvicreg.pipelines.convert.append import append_dataset
from fastvicreg.pipelines.convert.conversion import Progress, Summary
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import FORMATS, Settings

__all__ = ["FORMATS", "Progress", "Settings", "Summary", "append_dataset", "convert_dataset"]
