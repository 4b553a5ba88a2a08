"""ResNets for waveforms."""
