"""FFCV's ``.beton``: one file of images and labels, read through mmap and written by us, no FFCV needed."""
