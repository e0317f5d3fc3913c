"""The live path: refreshable views that do what `dbt run` does, and recorded data that arrive as they once did."""
