"""Engine x environment -> Episode, Group."""
