"""What was asked of training, and who goes next."""
