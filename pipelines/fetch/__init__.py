"""Data that cannot be read where it lies, on this disk: files of other machines, and compressed tar files unpacked."""

from fastvicreg.pipelines.fetch.address import is_remote
from fastvicreg.pipelines.fetch.copies import local_copy, needs_copy

__all__ = ["is_remote", "local_copy", "needs_copy"]
