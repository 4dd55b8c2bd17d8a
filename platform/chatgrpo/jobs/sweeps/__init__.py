"""Many runs of one configuration with different values, to find the best ones."""
