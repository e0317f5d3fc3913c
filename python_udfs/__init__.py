"""MarketPrism: the thin Python around a feature store whose logic is SQL."""
