"""`marketprism dashboard`: a local page of what the store is doing now, read only."""
