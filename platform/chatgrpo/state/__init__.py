"""What is remembered: append-only logs behind one `Store` protocol, and conversations on top of them."""
