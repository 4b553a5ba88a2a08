"""Ways to run one training step, by name: forward, backward and update of a method."""
