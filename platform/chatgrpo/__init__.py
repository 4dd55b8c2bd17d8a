"""chatgrpo: serve, remember, judge, train, serve."""
