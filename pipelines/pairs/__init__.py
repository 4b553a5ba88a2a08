"""Pairs: two modalities of one sample, an image and its caption or a sound and its spectrogram, as the two views."""
