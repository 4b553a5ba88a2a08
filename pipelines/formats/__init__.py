"""The formats that datasets lie in: a folder each, with its layout, its source and, where we write it, its writer."""
