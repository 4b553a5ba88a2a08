"""Weights of other programs: read without running their code, recognised by their names, brought to our encoders.

``imported.import_weights`` is the way in; a layout is one row in ``layouts.LAYOUTS``.
"""
