"""The names under which every stage of a step appears in a trace, whichever engine or kernel is in."""

DATA_WAIT = "fv.data_wait"
H2D = "fv.h2d"
AUGMENT = "fv.augment"
FORWARD = "fv.forward"
LOSS = "fv.loss"
BACKWARD = "fv.backward"
OPTIMIZER = "fv.optimizer"
COMM = "fv.comm"

ALL = (DATA_WAIT, H2D, AUGMENT, FORWARD, LOSS, BACKWARD, OPTIMIZER, COMM)

DECODE = "fv.decode"
RESAMPLE = "fv.resample"

WORKERS = (DECODE, RESAMPLE)
"""In the engines' threads, beside the step: no stages of it."""
