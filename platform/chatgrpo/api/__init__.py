"""What the outside world may ask."""
