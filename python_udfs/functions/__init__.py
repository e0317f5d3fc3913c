"""Pure functions for what SQL cannot say well: importable Python, and ClickHouse executable UDFs at once.

A module of this package holds functions of one topic, each made known by `@udf`; see `registry`.
"""
