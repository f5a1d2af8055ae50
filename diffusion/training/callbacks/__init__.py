"""What happens beside the training loop: metrics, progress, pictures, checkpoints, signals."""
