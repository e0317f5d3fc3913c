"""What the public relations promise, checked with great-expectations: `marketprism quality`."""
