"""What a trained network is good for, and how to look into one: transfer, distillation, probes."""
