"""Tar shards as DALI and the webdataset library read them, ours or made by others."""
